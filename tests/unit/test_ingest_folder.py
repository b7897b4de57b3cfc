"""Ingest of a folder: sidecars, tables of captions of every kind, and the sizes of shards."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cloc.data.ingest.parts import ShardSize, file_parts
from cloc.data.ingest.records import Record
from cloc.data.schema import Manifest
from cloc.errors import DataError
from tests.unit.test_ingest import ingest, jpeg, quarantine, samples, settings


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four pictures, a.jpg to d.jpg, of 60 x 40 pixels."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index, name in enumerate("abcd"):
        (folder / f"{name}.jpg").write_bytes(jpeg(index))
    return folder


def sidecar(images: Path, body: Any, name: str = "a.json") -> None:
    (images / name).write_text(body if isinstance(body, str) else json.dumps(body))


# --- sidecars


def test_json_sidecar(tmp_path: Path, images: Path) -> None:
    regions = [
        {"box": [0.1, 0.2, 0.5, 1], "text": "left"},
        {"box": [30, 0, 60, 40], "text": "right half", "unit": "pixel"},
    ]
    sidecar(
        images,
        {"caption": "one", "alt_text": ["two", "one more"], "url": "http://x/a", "license": "CC0", "regions": regions}
        | {"width": 60, "height": 40},
    )
    sidecar(images, "three", name="a.txt")
    sidecar(images, {"text": "of b", "source": "me", "licence": "MIT"}, name="b.json")
    ingest(tmp_path, images=str(images))
    found = samples(tmp_path)
    assert [row["text"] for row in found["a"].captions] == ["three", "one", "two", "one more"]
    assert {row["kind"] for row in found["a"].captions} == {"alt_text"}
    assert (found["a"].sample.meta["source"], found["a"].sample.meta["licence"]) == ("http://x/a", "CC0")
    assert (found["b"].sample.meta["source"], found["b"].sample.meta["licence"]) == ("me", "MIT")
    boxes = [[row[name] for name in ("x1", "y1", "x2", "y2")] for row in found["a"].regions]
    np.testing.assert_allclose(boxes, [[0.1, 0.2, 0.5, 1], [0.5, 0, 1, 1]], atol=1e-6)
    assert [row["text"] for row in found["a"].regions] == ["left", "right half"]
    assert quarantine(tmp_path) == {}


def test_a_text_that_two_files_have_stands_once(tmp_path: Path, images: Path) -> None:
    sidecar(images, "same", name="a.txt")
    sidecar(images, {"caption": "same"})
    (tmp_path / "c.csv").write_text("file,caption\na.jpg,other\na.jpg,other\n")
    ingest(tmp_path, images=str(images), captions=str(tmp_path / "c.csv"))
    assert [row["text"] for row in samples(tmp_path)["a"].captions] == ["other", "other", "same"]


def test_suffixes_in_capitals(tmp_path: Path, images: Path) -> None:
    (images / "a.jpg").rename(images / "a.JPG")
    sidecar(images, "big", name="a.TXT")
    ingest(tmp_path, images=str(images))
    assert samples(tmp_path)["a"].captions[0]["text"] == "big"
    sidecar(images, "small", name="a.txt")
    with pytest.raises(DataError, match=r"a\.TXT and a\.txt differ in case only"):
        ingest(tmp_path, images=str(images))


def test_two_images_of_one_sidecar_clash(tmp_path: Path, images: Path) -> None:
    (images / "a.png").write_bytes(jpeg(9))
    sidecar(images, "whose?", name="a.txt")
    with pytest.raises(DataError, match=r"'a\.jpg' and 'a\.png' have the same key 'a'"):
        ingest(tmp_path, images=str(images))


@pytest.mark.parametrize(
    ("name", "body", "reason"),
    [
        ("a.txt", "x" * 2001, "caption: a.txt has 2001 bytes, more than data.max_text_bytes 2000 allows"),
        ("a.json", '{"caption": "' + "x" * 2000 + '"}', "caption: a.json has 2015 bytes, more than"),
        ("a.json", '{"caption": ', "caption: a.json is not valid JSON (Expecting value: line 1 column 13"),
        ("a.json", "[" * 1999, "caption: a.json is not valid JSON ("),
        ("a.json", '["x"]', "caption: a.json: expected an object, got list"),
        ("a.json", '{"captions": ["x", 3]}', "caption: a.json: captions is a text or a list of texts"),
        ("a.json", '{"regions": 3}', "box: a.json: regions is a list, got int"),
        ("a.json", '{"regions": [{"box": [0, 0, 1, 1]}]}', "box: a.json: regions[0]: expected an object with box and"),
        ("a.json", '{"regions": [{"box": [0, 0, 1], "text": "x"}]}', "box: a.json: regions[0]: box must be [x1, y1,"),
        ("a.json", '{"regions": [{"box": [0, 0, 1, NaN], "text": "x"}]}', "box: a.json: regions[0]: box must be"),
        ("a.json", '{"regions": [{"box": [0, 0, 1, 1], "text": "x", "unit": "cm"}]}', "box: a.json: regions[0]: unit"),
        (
            "a.json",
            '{"regions": [{"box": [0, 0, 1, 1], "text": "x", "unit": "pixel"}]}',
            "box: a.json: regions[0]: a box in pixels needs width and height",
        ),
    ],
)
def test_bad_sidecar_is_quarantined(tmp_path: Path, images: Path, name: str, body: str, reason: str) -> None:
    sidecar(images, body, name=name)
    result = ingest(tmp_path, settings(max_text_bytes=2000), images=str(images))
    (found,) = quarantine(tmp_path)["a"]
    assert found.startswith(reason)
    assert result.counts["images"] == 4, "a bad sidecar does not cost its image"
    kind = "quarantined_boxes" if reason.startswith("box:") else "quarantined_captions"
    assert result.counts[kind] == 1


def test_sidecar_of_any_bytes(tmp_path: Path, images: Path) -> None:
    (images / "a.json").write_bytes(b'{"caption": "\xff"}')
    ingest(tmp_path, images=str(images))
    assert quarantine(tmp_path) == {"a": ["caption: a.json is not UTF-8"]}


def test_size_in_a_sidecar_counts_for_boxes_only(tmp_path: Path, images: Path) -> None:
    """img2dataset writes the size before EXIF turns the picture: that must not cost an image without boxes."""
    sidecar(images, {"caption": "x", "width": 40, "height": 60})
    ingest(tmp_path, images=str(images))
    assert "a" in samples(tmp_path)
    sidecar(images, {"regions": [{"box": [0, 0, 1, 1], "text": "x"}], "width": 40, "height": 60})
    ingest(tmp_path, images=str(images))
    assert quarantine(tmp_path)["a"] == ["image: is 60x40 pixels, its annotations are for 40x60"]


# --- tables of captions


def test_captions_in_tsv_and_parquet_with_columns_named(tmp_path: Path, images: Path) -> None:
    rows = [{"path": "a.jpg", "title": ["one", "two"], "license": "CC0"}, {"path": "b.jpg", "title": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    (tmp_path / "c.tsv").write_text("path\ttitle\tlicense\na.jpg\tone\tCC0\na.jpg\ttwo\t\n")
    for name in ("c.parquet", "c.tsv"):
        columns = "file=path,caption=title,licence=license"
        ingest(tmp_path, images=str(images), captions=str(tmp_path / name), columns=columns)
        found = samples(tmp_path)["a"]
        assert [row["text"] for row in found.captions] == ["one", "two"]
        assert found.sample.meta["licence"] == "CC0"
        assert samples(tmp_path)["b"].captions == ()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("file", "columns: 'file' is no pair name=column"),
        ("file=", "columns: 'file=' is no pair name=column"),
        ("image=x", "columns: 'image' means nothing here; there are: file, caption, source, licence"),
        ("file=x,file=y", "columns: 'file' is named twice, as 'x' and as 'y'"),
        ("file=nope", "has no column 'nope' \\(it has: file, caption\\)"),
    ],
)
def test_bad_columns_are_one_line(tmp_path: Path, images: Path, columns: str, message: str) -> None:
    pq.write_table(pa.table({"file": ["a.jpg"], "caption": ["x"]}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match=message) as caught:
        ingest(tmp_path, images=str(images), captions=str(tmp_path / "c.parquet"), columns=columns)
    assert "\n" not in str(caught.value)


def test_columns_without_a_table_are_refused(tmp_path: Path, images: Path) -> None:
    with pytest.raises(DataError, match="names columns of a table of captions"):
        ingest(tmp_path, images=str(images), columns="file=x")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"hello", r"c\.parquet as Parquet"),
        (pa.table({"file": ["a.jpg"], "caption": [3]}), "row 0: `caption` is a text or a list of texts, got int"),
        (pa.table({"file": [1], "caption": ["x"]}), "row 0: expected `file` and `caption`"),
        (
            pa.table({"file": ["a.jpg"], "caption": pa.array([b"\xff"]).view(pa.string())}),
            r"c\.parquet has texts that are not UTF-8",
        ),
    ],
)
def test_bad_parquet_of_captions_is_one_line(tmp_path: Path, images: Path, body: Any, message: str) -> None:
    path = tmp_path / "c.parquet"
    if isinstance(body, bytes):
        path.write_bytes(body)
    else:
        pq.write_table(body, path)
    with pytest.raises(DataError, match=message) as caught:
        ingest(tmp_path, images=str(images), captions=str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_bytes_that_are_no_text_are_told_with_their_line(tmp_path: Path, images: Path, suffix: str) -> None:
    row = {".csv": b"a.jpg,x\n", ".jsonl": b'{"file": "a.jpg", "caption": "x"}\n'}[suffix]
    body = (b"file,caption\n" if suffix == ".csv" else b"") + row * 5000 + row.replace(b"x", b"\xe4")
    (tmp_path / f"c{suffix}").write_bytes(body)
    with pytest.raises(DataError, match=r"is not UTF-8 \(after line \d{4}\); convert it"):
        ingest(tmp_path, images=str(images), captions=str(tmp_path / f"c{suffix}"))


# --- sizes of shards


def shards_of(folder: Path, sizes: list[int], *, images: int, body: int) -> list[list[str]]:
    records = [Record(key=f"k{index}", name=f"{index}.jpg") for index in range(len(sizes))]
    for record, size in zip(records, sizes, strict=True):
        if size >= 0:
            (folder / record.name).write_bytes(bytes(size))
    parts = file_parts(records, folder=folder, size=ShardSize(images=images, bytes=body))
    return [[record.key for record in part.records] for part in parts]


def test_shards_are_cut_by_count_and_by_bytes(tmp_path: Path) -> None:
    sizes = [40, 60, 1, 100, 250, 10, 10, 10, 10]
    # 40 + 60 fill a shard; 1 + 100 would overfill one; 250 is larger than a shard; then four images are enough.
    expected = [["k0", "k1"], ["k2"], ["k3"], ["k4"], ["k5", "k6", "k7", "k8"]]
    assert shards_of(tmp_path, sizes, images=4, body=100) == expected
    assert shards_of(tmp_path, sizes, images=4, body=100) == expected
    assert shards_of(tmp_path, sizes, images=4, body=0) == [["k0", "k1", "k2", "k3"], ["k4", "k5", "k6", "k7"], ["k8"]]
    (tmp_path / "0.jpg").unlink()  # a file that is missing has no bytes
    assert shards_of(tmp_path, [-1, *sizes[1:]], images=4, body=100)[0] == ["k0", "k1", "k2"]


def test_bytes_per_shard_is_a_setting(tmp_path: Path, images: Path) -> None:
    size = len(jpeg(0))
    result = ingest(tmp_path, settings(bytes_per_shard=int(2.5 * size)), images=str(images))
    assert result.counts["shards"] == 2
    manifest = Manifest.from_json((tmp_path / "out/manifest.json").read_text(), source="test")
    assert [shard.images for shard in manifest.shards] == [2, 2]
    assert manifest.made_by["bytes_per_shard"] == int(2.5 * size)
