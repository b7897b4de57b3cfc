"""Ingest: folders and COCO JSON into data sets; bad input is quarantined with its reason or told in one line."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cloc.config import Config, parse
from cloc.data import tables
from cloc.data.dataset import Dataset, LabeledSample, write_manifest
from cloc.data.ingest.records import key_of
from cloc.data.ingest.stage import Inputs, Outputs, run
from cloc.data.schema import Manifest
from cloc.data.shards import MAX_KEY
from cloc.data.storage import FolderStorage
from cloc.errors import DataError
from cloc.stage import StageResult

COCO = Path(__file__).parents[3] / "shared/data/coco_val2017_dev"


def settings(**data: Any) -> Config:
    return parse({"data": {"processes": 1, "images_per_shard": 4, "quarantine_limit": 0.9, **data}}, source="test")


def jpeg(seed: int, size: tuple[int, int] = (60, 40)) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).save(sink, "JPEG")
    return sink.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Ten good pictures p0.jpg to p9.jpg, two of them in a subfolder."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for index in range(10):
        (folder / ("sub" if index > 7 else "") / f"p{index}.jpg").write_bytes(jpeg(index))
    return folder


def ingest(tmp_path: Path, config: Config | None = None, **inputs: str) -> StageResult:
    return run(config or settings(), inputs=Inputs(**inputs), outputs=Outputs(data=str(tmp_path / "out")))


def samples(tmp_path: Path) -> dict[str, LabeledSample]:
    return {item.sample.key: item for item in Dataset.open(tmp_path / "out").read_all()}


def quarantine(tmp_path: Path) -> dict[str, list[str]]:
    """Reasons by key over all quarantine tables."""
    found: dict[str, list[str]] = {}
    for path in sorted((tmp_path / "out/quarantine").glob("*.parquet")):
        for row in tables.read_table(FolderStorage(tmp_path / "out"), "quarantine", path.stem).to_pylist():
            assert row["stage"] == "ingest"
            found.setdefault(row["key"], []).append(row["reason"])
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- folder


def test_folder_with_sidecars(tmp_path: Path, images: Path) -> None:
    (images / "p0.txt").write_text("a  photo of\nnoise ")
    (images / "notes.md").write_text("no image")
    result = ingest(tmp_path, images=str(images))
    found = samples(tmp_path)
    assert list(found) == [*(f"p{index}" for index in range(8)), "sub_p8", "sub_p9"]
    assert found["p0"].sample.image == jpeg(0)
    meta = {"alt_text": "a photo of noise", "file": "p0.jpg", "source": "", "licence": "", "width": 60, "height": 40}
    assert found["p0"].sample.meta == meta
    assert [(row["text"], row["kind"]) for row in found["p0"].captions] == [("a photo of noise", "alt_text")]
    assert found["p1"].captions == ()
    assert result.counts["images"] == 10
    assert result.counts["shards"] == 3
    assert result.metrics["data/quarantined_share"] == 0
    manifest = Dataset.open(tmp_path / "out").manifest
    assert manifest.images == 10
    assert str(tmp_path) not in manifest.to_json()


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("c.csv", 'file,caption,licence\np0.jpg,"one, two",CC0\np0.jpg,three,\nsub/p8.jpg,eight,\n'),
        ("c.json", '[{"file": "p0.jpg", "caption": ["one, two", "three"], "licence": "CC0"}, {"file": "sub/p8.jpg", "caption": "eight"}]'),  # noqa: E501
        ("c.jsonl", '{"file": "p0.jpg", "caption": "one, two", "licence": "CC0"}\n\n{"file": "p0.jpg", "caption": "three"}\n{"file": "sub/p8.jpg", "caption": "eight"}\n'),  # noqa: E501
    ],
)  # fmt: skip
def test_captions_files(tmp_path: Path, images: Path, name: str, body: str) -> None:
    (tmp_path / name).write_text(body)
    ingest(tmp_path, images=str(images), captions=str(tmp_path / name))
    found = samples(tmp_path)
    assert [row["text"] for row in found["p0"].captions] == ["one, two", "three"]
    assert (found["p0"].sample.meta["alt_text"], found["p0"].sample.meta["licence"]) == ("one, two", "CC0")
    assert [row["text"] for row in found["sub_p8"].captions] == ["eight"]


def test_captions_as_one_object(tmp_path: Path, images: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"p1.jpg": "one"}))
    ingest(tmp_path, images=str(images), captions=str(tmp_path / "c.json"))
    assert samples(tmp_path)["p1"].captions[0]["text"] == "one"


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("c.csv", "name,text\np0.jpg,x\n", "line 2: expected `file` and `caption`, got name, text"),
        ("c.csv", "file,caption\np0.jpg\n", "line 2: expected `file` and `caption`, got file"),
        ("c.csv", 'file,caption\np0.jpg,"x\n', "not valid CSV"),
        ("c.csv", "file,caption\n", "has no captions"),
        ("c.csv", "file,caption\nother.jpg,x\n", r"no file named in .* is in .*'other\.jpg'"),
        ("c.json", '[{"file": "p0.jpg",]', r"not valid JSON \(line 1, column 20"),
        ("c.json", '"x"', "expected a list of objects or an object, got str"),
        ("c.json", '[{"file": "p0.jpg", "caption": 3}]', "item 0: `caption` is a text or a list of texts, got int"),
        ("c.json", "[" * 100_000, "cannot be read"),
        ("c.jsonl", '{"file": "p0.jpg", "caption": "x"}\nnope\n', "line 2 is not valid JSON"),
        ("c.txt", "x", r"expected a file of the kind \.csv, \.tsv, \.json, \.jsonl, \.parquet"),
    ],
)
def test_bad_captions_file_is_one_line(tmp_path: Path, images: Path, name: str, body: str, message: str) -> None:
    (tmp_path / name).write_text(body)
    with pytest.raises(DataError, match=message) as caught:
        ingest(tmp_path, images=str(images), captions=str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_missing_inputs_are_named(tmp_path: Path, images: Path) -> None:
    with pytest.raises(DataError, match=r"captions: cannot read .*none\.csv \(No such file"):
        ingest(tmp_path, images=str(images), captions=str(tmp_path / "none.csv"))
    with pytest.raises(DataError, match="images: there is no folder"):
        ingest(tmp_path, images=str(tmp_path / "none"))
    (tmp_path / "latin.csv").write_bytes("file,caption\np0.jpg,Äpfel\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.csv is not UTF-8"):
        ingest(tmp_path, images=str(images), captions=str(tmp_path / "latin.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there are no images in"):
        ingest(tmp_path, images=str(tmp_path / "empty"))
    with pytest.raises(DataError, match=r"source 'zip' is unknown; there are: coco, .*folder, "):
        ingest(tmp_path, images=str(images), source="zip")
    with pytest.raises(DataError, match="coco_captions: 'x' means nothing to the source 'folder'"):
        ingest(tmp_path, images=str(images), coco_captions="x")


def test_bad_images_are_quarantined_with_their_reason(tmp_path: Path, images: Path) -> None:
    (images / "p1.jpg").write_bytes(jpeg(1)[:700])
    (images / "p2.jpg").write_bytes(jpeg(2, size=(1, 1)))
    (images / "p3.jpg").write_text("hello")
    (images / "p4.jpg").write_bytes(b"")
    result = ingest(tmp_path, images=str(images))
    reasons = {key: value[0] for key, value in quarantine(tmp_path).items()}
    assert reasons["p1"].startswith("image: cannot be decoded (image file is truncated")
    assert reasons["p2"].startswith("image: too small (1x1")
    assert reasons["p3"].startswith("image: not an image")
    assert reasons["p4"] == "image: empty file"
    assert result.counts["quarantined"] == len(reasons) == 4
    assert sorted(samples(tmp_path)) == ["p0", "p5", "p6", "p7", "sub_p8", "sub_p9"]
    assert Dataset.open(tmp_path / "out").manifest.quarantined == 4


def test_too_many_bad_images_fail(tmp_path: Path, images: Path) -> None:
    (images / "p3.jpg").write_text("hello")
    with pytest.raises(DataError, match=r"1 of 10 images \(10\.0%\).*quarantine_limit 5\.0%.*p3: image: not an image"):
        ingest(tmp_path, settings(quarantine_limit=0.05), images=str(images))
    assert not (tmp_path / "out/manifest.json").exists(), "a failed ingest must not look finished"


def test_shard_without_usable_images_is_left_out(tmp_path: Path, images: Path) -> None:
    for index in range(4):
        (images / f"p{index}.jpg").write_text("hello")
    result = ingest(tmp_path, images=str(images))
    manifest = Dataset.open(tmp_path / "out").manifest
    assert [shard.name for shard in manifest.shards] == ["00001", "00002"]
    assert (result.counts["images"], manifest.quarantined, len(quarantine(tmp_path))) == (6, 4, 4)


def test_bad_captions_are_quarantined(tmp_path: Path, images: Path) -> None:
    captions = [{"file": "p0.jpg", "caption": ["", " \n", "good"]}, {"file": "p1.jpg", "caption": "half \ud83d pair"}]
    (tmp_path / "c.json").write_text(json.dumps(captions))
    (images / "p2.txt").write_bytes(b"\xff\xfe\x00")
    result = ingest(tmp_path, images=str(images), captions=str(tmp_path / "c.json"))
    assert quarantine(tmp_path) == {
        "p0": ["caption: empty text"] * 2,
        "p1": ["caption: not valid Unicode"],
        "p2": ["caption: p2.txt is not UTF-8"],
    }
    assert (result.counts["captions"], result.counts["quarantined_captions"]) == (1, 4)


def test_two_files_with_one_key_are_both_named(tmp_path: Path, images: Path) -> None:
    (images / "sub_p8.png").write_bytes(jpeg(1))
    with pytest.raises(DataError, match=r"'sub_p8\.png' and 'sub/p8\.jpg' have the same key 'sub_p8'") as caught:
        ingest(tmp_path, settings(processes=2), images=str(images))
    assert "\n" not in str(caught.value)


def test_keys_are_plain_and_stay_apart() -> None:
    assert key_of("a/b c.d.jpg") == "a_b_c_d"
    names = ["苹果.jpg", "香蕉.jpg", "x" * 300 + "1.jpg", "x" * 300 + "2.jpg", "\udcff.jpg"]
    keys = [key_of(name) for name in names]
    assert len(set(keys)) == len(names)
    assert all(len(key) <= MAX_KEY and key.isascii() for key in keys)


def test_file_names_of_any_bytes(tmp_path: Path, images: Path) -> None:
    name = os.fsdecode(b"p\xff.jpg")
    (images / name).write_bytes(jpeg(3))
    ingest(tmp_path, images=str(images))
    assert samples(tmp_path)[key_of(name)].sample.meta["file"] == "p\\udcff.jpg"


def test_only_keeps_the_listed_files(tmp_path: Path, images: Path) -> None:
    (tmp_path / "only.txt").write_text("p3.jpg\nsub/p9.jpg\n")
    ingest(tmp_path, images=str(images), only=str(tmp_path / "only.txt"))
    assert list(samples(tmp_path)) == ["p3", "sub_p9"]
    (tmp_path / "only.txt").write_text("p3.jpg\ngone.jpg\n")
    with pytest.raises(DataError, match=r"lists 1 files that the source lacks \(first: 'gone\.jpg'\)"):
        ingest(tmp_path, images=str(images), only=str(tmp_path / "only.txt"))


# --- writing


def test_processes_make_no_difference(tmp_path: Path, images: Path) -> None:
    (images / "p3.jpg").write_text("hello")
    for name, processes in (("one", 1), ("two", 2)):
        run(
            settings(processes=processes),
            inputs=Inputs(images=str(images)),
            outputs=Outputs(data=str(tmp_path / name)),
        )
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_rerun_skips_what_is_done_and_redoes_what_changed(tmp_path: Path, images: Path) -> None:
    ingest(tmp_path, images=str(images))
    first = files(tmp_path / "out")
    assert ingest(tmp_path, images=str(images)).counts["skipped_shards"] == 3
    assert files(tmp_path / "out") == first
    (images / "p5.jpg").write_bytes(jpeg(55))
    assert ingest(tmp_path, images=str(images)).counts["skipped_shards"] == 2
    assert samples(tmp_path)["p5"].sample.image == jpeg(55)
    assert ingest(tmp_path, settings(min_side=20), images=str(images)).counts["skipped_shards"] == 0
    (images / "p0.txt").write_text("new caption")
    assert ingest(tmp_path, settings(min_side=20), images=str(images)).counts["skipped_shards"] == 2


def test_damaged_shard_is_made_again(tmp_path: Path, images: Path) -> None:
    ingest(tmp_path, images=str(images))
    first = files(tmp_path / "out")
    (tmp_path / "out/images/00001.tar").unlink()
    (tmp_path / "out/regions/00002.parquet").unlink()
    assert ingest(tmp_path, images=str(images)).counts["skipped_shards"] == 1
    assert files(tmp_path / "out") == first


def test_killed_run_goes_on(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest(tmp_path, images=str(images))
    whole = files(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "whole")
    real, written = FolderStorage.write_bytes, 0
    for kill_at in range(1, len(whole)):

        def write_bytes(self: FolderStorage, path: str, body: bytes, kill_at: int = kill_at) -> None:
            nonlocal written
            written += 1
            if written == kill_at:
                raise KeyboardInterrupt
            real(self, path, body)

        written = 0
        monkeypatch.setattr(FolderStorage, "write_bytes", write_bytes)
        with pytest.raises(KeyboardInterrupt):
            ingest(tmp_path, images=str(images))
        assert not (tmp_path / "out/manifest.json").exists()
        monkeypatch.setattr(FolderStorage, "write_bytes", real)
        result = ingest(tmp_path, images=str(images))
        assert result.counts["skipped_shards"] == min((kill_at - 1) // 6, 3)  # tar, four tables and stats a shard
        assert files(tmp_path / "out") == whole
        (tmp_path / "out").rename(tmp_path / f"out{kill_at}")


def test_killed_between_two_settings_never_mixes_them(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tar of new settings beside the record of old ones must not pass for a finished shard."""
    ingest(tmp_path, images=str(images))
    first = files(tmp_path / "out")
    real = tables.write_table

    def killed(*_: Any, **__: Any) -> int:
        raise KeyboardInterrupt

    (images / "p0.jpg").write_bytes(jpeg(77))
    state = (images / "p1.jpg").stat()
    monkeypatch.setattr(tables, "write_table", killed)
    with pytest.raises(KeyboardInterrupt):
        ingest(tmp_path, images=str(images))
    monkeypatch.setattr(tables, "write_table", real)
    (images / "p0.jpg").write_bytes(jpeg(0))
    assert (images / "p1.jpg").stat() == state
    ingest(tmp_path, images=str(images))
    found = files(tmp_path / "out")
    assert found["images/00000.tar"] == first["images/00000.tar"]
    assert found["manifest.json"] == first["manifest.json"]


def test_smaller_rerun_leaves_nothing_of_the_larger(tmp_path: Path, images: Path) -> None:
    ingest(tmp_path, images=str(images))
    ingest(tmp_path, settings(images_per_shard=100), images=str(images))
    names = {Path(name).stem for name in files(tmp_path / "out")} - {"manifest"}
    assert names == {"00000"}


def test_foreign_data_set_is_not_overwritten(tmp_path: Path, images: Path) -> None:
    write_manifest(FolderStorage(tmp_path / "out"), Manifest(shards=(), made_by={"tool": "cloc data scenes"}))
    before = files(tmp_path / "out")
    with pytest.raises(DataError, match="holds a data set made by 'cloc data scenes'"):
        ingest(tmp_path, images=str(images))
    assert files(tmp_path / "out") == before


# --- COCO


def coco(boxes: list[tuple[int, list[float]]], **more: Any) -> dict[str, Any]:
    """Instances for p0.jpg (id 1) and p1.jpg (id 2): category and bbox, all on the first image."""
    return {
        "images": [
            {"id": 2, "file_name": "p1.jpg", "width": 60, "height": 40},
            {"id": 1, "file_name": "p0.jpg", "width": 60, "height": 40, "coco_url": "http://x/p0", "license": 7},
        ],
        "licenses": [{"id": 7, "name": "CC BY", "url": "http://cc/by"}],
        "categories": [{"id": 9, "name": "zebra"}, {"id": 3, "name": "apple"}],
        "annotations": [
            {"id": index, "image_id": 1, "category_id": category, "bbox": bbox, "iscrowd": 0, "segmentation": [[1, 2]]}
            for index, (category, bbox) in enumerate(boxes)
        ],
        **more,
    }


def ingest_coco(tmp_path: Path, images: Path, instances: Any, **inputs: str) -> StageResult:
    path = tmp_path / "instances.json"
    path.write_text(instances if isinstance(instances, str) else json.dumps(instances))
    return ingest(tmp_path, source="coco", images=str(images), coco_instances=str(path), **inputs)


def test_coco_boxes_captions_and_classes(tmp_path: Path, images: Path) -> None:
    instances = coco([(9, [6, 4, 30, 20]), (3, [0, 0, 60, 40]), (3, [0, 0, 9, 9])])
    instances["annotations"][2]["iscrowd"] = 1
    captions = {
        "images": instances["images"],
        "annotations": [
            {"image_id": 1, "caption": "Two things. "},
            {"image_id": 1, "caption": "b"},
            {"image_id": 2, "caption": "  "},
        ],
    }
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    result = ingest_coco(tmp_path, images, instances, coco_captions=str(tmp_path / "captions.json"))
    found = samples(tmp_path)
    assert list(found) == ["p0", "p1"]
    assert [(row["text"], row["kind"]) for row in found["p0"].captions] == [("Two things.", "human"), ("b", "human")]
    assert found["p0"].sample.meta["source"] == "http://x/p0"
    assert found["p0"].sample.meta["licence"] == "http://cc/by"
    assert found["p0"].sample.meta["alt_text"] == ""
    zebra, apple = found["p0"].regions
    np.testing.assert_allclose([zebra[name] for name in ("x1", "y1", "x2", "y2")], [0.1, 0.1, 0.6, 0.6], atol=1e-6)
    assert [apple[name] for name in ("x1", "y1", "x2", "y2")] == [0, 0, 1, 1]
    assert [zebra[name] for name in ("text", "label", "score", "source")] == ["zebra", "zebra", 1.0, "human"]
    assert Dataset.open(tmp_path / "out").manifest.classes == ("apple", "zebra")
    assert result.counts["crowd_boxes"] == 1
    assert quarantine(tmp_path) == {"p1": ["caption: empty text"]}


def test_coco_bad_boxes_are_quarantined_or_clipped(tmp_path: Path, images: Path) -> None:
    instances = coco(
        [
            (3, [-0.9, 0, 30, 40.8]),  # within a pixel: clipped
            (3, [40, 10, 30, 10]),  # 10 pixels beyond the right border
            (3, [5, 5, 0, 10]),  # no width
            (3, [5, 5, -3, 10]),  # negative width
            (3, [60.5, 0, 0.2, 10]),  # wholly outside, though by less than a pixel
            (3, [1.7e308, 0, 1.7e308, 5]),  # no sum that a float can hold
            (8, [5, 5, 10, 10]),  # of the class without a name
        ]
    )
    instances["categories"].append({"id": 8, "name": " "})
    result = ingest_coco(tmp_path, images, instances)
    (region,) = samples(tmp_path)["p0"].regions
    np.testing.assert_allclose([region[name] for name in ("x1", "y1", "x2", "y2")], [0, 0, 29.1 / 60, 1], atol=1e-6)
    reasons = [reason.partition(" (")[0] for reason in quarantine(tmp_path)["p0"]]
    assert reasons == [
        "box: box outside its image by 10.0 pixels",
        "box: degenerate box",
        "box: degenerate box",
        "box: degenerate box",
        "box: box is not finite",
        "box: empty text",
    ]
    assert (result.counts["regions"], result.counts["clipped_boxes"], result.counts["quarantined_boxes"]) == (1, 1, 6)
    assert result.counts["quarantined"] == 0, "a bad box does not cost its image"


def test_coco_image_of_another_shape_missing_or_outside(tmp_path: Path, images: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(jpeg(1))
    instances = coco([(3, [0, 0, 10, 10])])
    size = {"width": 60, "height": 40}
    instances["images"] += [
        {"id": 4, "file_name": "p4.jpg", "width": 40, "height": 60},
        {"id": 5, "file_name": "gone.jpg", **size},
        {"id": 6, "file_name": "../secret.jpg", **size},
        {"id": 7, "file_name": "p7.jpg", "width": 600, "height": 400},  # was scaled: fine
    ]
    ingest_coco(tmp_path, images, instances)
    assert list(samples(tmp_path)) == ["p0", "p1", "p7"]
    reasons = quarantine(tmp_path)
    assert reasons["p4"] == ["image: is 60x40 pixels, its annotations are for 40x60"]
    assert reasons["gone"] == ["image: the file is missing"]
    assert reasons["secret"] == ["image: '../secret.jpg' points outside its folder"]


def change(instances: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Sets `a.0.b` to a value, or removes it for None."""
    *parents, leaf = [int(part) if part.isdigit() else part for part in path.split(".")]
    node: Any = instances
    for parent in parents:
        node = node[parent]
    if value is None:
        del node[leaf]
    else:
        node[leaf] = value
    return instances


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("images", None, "the key 'images' is missing"),
        ("annotations", {}, "annotations must be of type list"),
        ("categories", None, "the key 'categories' is missing"),
        ("annotations.0.bbox", None, r"annotations\[0\]: the key 'bbox' is missing"),
        ("annotations.0.bbox", [1, 2, 3], r"annotations\[0\]: bbox must be \[x, y, width, height\], got \[1, 2, 3\]"),
        ("annotations.0.bbox", [1, 2, 3, "4"], r"annotations\[0\]: bbox must be"),
        ("annotations.0.bbox", [1, 2, 3, 10**400], r"not valid JSON in annotations\[0\] .*integer overflow"),
        ("annotations.0.image_id", 99, r"annotations\[0\]: image_id 99 is not among its images"),
        ("annotations.0.category_id", 99, r"annotations\[0\]: category_id 99 is not among its categories"),
        ("annotations.0", 5, r"annotations\[0\]: expected an object, got int"),
        ("images.1.file_name", None, r"images\[1\]: the key 'file_name' is missing"),
        ("images.1.file_name", "", "'' is not the name of a file"),
        ("images.1.width", "60", r"images\[1\]: width must be of type int, got '60'"),
        ("images.1.height", 0, r"images\[1\]: width and height must be at least 1, got 60x0"),
        ("images.1.id", 2, r"images\[1\]: id 2 stands for 'p0\.jpg' and for 'p1\.jpg'"),
        ("images.1.file_name", "p1.jpg", r"'p1\.jpg' and 'p1\.jpg' have the same key"),
        ("categories.0.name", None, r"categories\[0\]: the key 'name' is missing"),
    ],
)
def test_broken_coco_is_one_line(tmp_path: Path, images: Path, path: str, value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        ingest_coco(tmp_path, images, change(coco([(3, [0, 0, 10, 10])]), path, value))
    assert "\n" not in str(caught.value)


def test_coco_file_that_is_no_json(tmp_path: Path, images: Path) -> None:
    with pytest.raises(DataError, match=r"instances\.json is not valid JSON in images \(parse error: premature EOF"):
        ingest_coco(tmp_path, images, '{"images": ')
    with pytest.raises(DataError, match="expected an object with images, annotations, categories, got list"):
        ingest_coco(tmp_path, images, [])
    with pytest.raises(DataError, match="name a JSON file of instances"):
        ingest(tmp_path, source="coco", images=str(images))


@pytest.mark.skipif(not COCO.is_dir(), reason="the COCO photographs are not here (../shared/data)")
def test_coco_photographs_come_back_as_their_json_says(tmp_path: Path) -> None:
    tree, told = (json.loads((COCO / f"{name}.json").read_text()) for name in ("instances", "captions"))
    sizes = {image["id"]: (image["width"], image["height"]) for image in tree["images"]}
    names = {category["id"]: category["name"] for category in tree["categories"]}
    keys = {image["id"]: Path(image["file_name"]).stem for image in tree["images"]}
    expected: dict[str, list[Any]] = {key: [] for key in keys.values()}
    for item in tree["annotations"]:
        (x, y, w, h), (width, height) = item["bbox"], sizes[item["image_id"]]
        box = [x / width, y / height, (x + w) / width, (y + h) / height]
        expected[keys[item["image_id"]]].append((names[item["category_id"]], box))
    texts: dict[str, list[str]] = {key: [] for key in keys.values()}
    for item in told["annotations"]:
        texts[keys[item["image_id"]]].append(" ".join(item["caption"].split()))
    images = regions = captions = 0
    for split in ("train", "val"):
        out = tmp_path / split
        result = run(
            settings(images_per_shard=200, quarantine_limit=0.0),
            inputs=Inputs(
                images=str(COCO / "images"),
                source="coco",
                coco_instances=str(COCO / "instances.json"),
                coco_captions=str(COCO / "captions.json"),
                only=str(COCO / f"{split}.txt"),
            ),
            outputs=Outputs(data=str(out)),
        )
        listed = sorted(Path(name).stem for name in (COCO / f"{split}.txt").read_text().split())
        assert [item.sample.key for item in Dataset.open(out).read_all()] == listed
        assert result.counts["quarantined_boxes"] == result.counts["quarantined_captions"] == 0
        assert Dataset.open(out).manifest.classes == tuple(names[id_] for id_ in sorted(names))
        for item in Dataset.open(out).read_all():
            assert [row["text"] for row in item.captions] == texts[item.sample.key]
            assert {row["kind"] for row in item.captions} == {"human"}
            found = [([row["x1"], row["y1"], row["x2"], row["y2"]], row["label"]) for row in item.regions]
            assert [label for _, label in found] == [label for label, _ in expected[item.sample.key]]
            if found:
                wanted = [box for _, box in expected[item.sample.key]]
                np.testing.assert_allclose([box for box, _ in found], wanted, atol=1e-4)
            images, regions, captions = images + 1, regions + len(found), captions + len(item.captions)
    assert (images, regions) == (len(tree["images"]), len(tree["annotations"]))
    assert captions == len(told["annotations"])
