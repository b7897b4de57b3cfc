"""Ingest of tables: Parquet and what `datasets` saves come back whole; what is broken is told in one line.

The files are written here by pyarrow in the layout of the `datasets` library: its features in the schema's metadata,
images as structs of bytes and path.
"""

import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cloc.data.dataset import Dataset
from cloc.data.ingest.parts import Item, Refusal, ShardSize
from cloc.data.ingest.table import RowChunk, RowRange, TablePart, cut_rows, read_table
from cloc.data.ingest.table_plan import TablePlan
from cloc.data.storage import open_storage
from cloc.errors import DataError
from cloc.stage import StageResult
from tests.s3_server import Server, needs_server, serving_s3, use_endpoint
from tests.unit.test_ingest import files, jpeg, quarantine, samples, settings
from tests.unit.test_ingest import ingest as ingest_source

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
BOXES = pa.list_(pa.list_(pa.float32(), 4))
OBJECTS = pa.struct({"bbox": BOXES, "category": pa.list_(pa.int64())})
FEATURES = {
    "image": {"_type": "Image"},
    "caption": {"dtype": "string", "_type": "Value"},
    "objects": {
        "bbox": {"feature": {"feature": {"dtype": "float32", "_type": "Value"}, "length": 4, "_type": "List"}}
        | {"_type": "List"},
        "category": {"feature": {"names": ["apple", "zebra"], "_type": "ClassLabel"}, "_type": "List"},
    },
}


def ingest(tmp_path: Path, table: Path | str, **inputs: str) -> StageResult:
    return ingest_source(tmp_path, source="table", table=str(table), **inputs)


def rows(count: int, *, first: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "image": {"bytes": jpeg(index), "path": f"p{index}.jpg"},
            "caption": f"picture {index}",
            "objects": {"bbox": [[6, 4, 30, 20]], "category": [index % 2]},
        }
        for index in range(first, first + count)
    ]


def hugging_face(content: list[dict[str, Any]], features: Mapping[str, Any] = FEATURES) -> pa.Table:
    """A table as `datasets` writes it."""
    schema = pa.schema({"image": IMAGE, "caption": pa.string(), "objects": OBJECTS})
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    return pa.Table.from_pylist(content, schema=schema.with_metadata(metadata))


def write_parquet(path: Path, table: pa.Table, *, group: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


def save_to_disk(folder: Path, tables: list[pa.Table]) -> Path:
    """A folder as `Dataset.save_to_disk` writes it."""
    folder.mkdir(parents=True)
    names = [f"data-{index:05d}-of-{len(tables):05d}.arrow" for index in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "x", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


# --- what comes in comes out


def test_saved_data_set(tmp_path: Path) -> None:
    saved = save_to_disk(tmp_path / "saved", [hugging_face(rows(5)), hugging_face(rows(4, first=5))])
    result = ingest(tmp_path, saved)
    found = samples(tmp_path)
    keys = [f"data-00000-of-00002_{index}" for index in range(5)]
    keys += [f"data-00001-of-00002_{index}" for index in range(4)]
    assert list(found) == keys
    for index, sample in enumerate(found.values()):
        assert sample.sample.image == jpeg(index)
        assert sample.sample.meta["file"] == f"p{index}.jpg"
        assert [(row["text"], row["kind"]) for row in sample.captions] == [(f"picture {index}", "alt_text")]
        assert sample.regions == (), "boxes are read only where they are named"
    assert [shard.images for shard in Dataset.open(tmp_path / "out").manifest.shards] == [4, 4, 1]
    assert result.counts["images"] == 9
    made_by = Dataset.open(tmp_path / "out").manifest.made_by
    assert made_by["columns"] == {"image": "image", "caption": "caption"}
    assert str(tmp_path) not in json.dumps(dict(made_by))


def test_boxes_in_pixels_with_names_of_classes(tmp_path: Path) -> None:
    columns = "boxes=objects.bbox,texts=objects.category,box_format=xywh,box_unit=pixel"
    for table in (
        write_parquet(tmp_path / "t.parquet", hugging_face(rows(2))),
        save_to_disk(tmp_path / "saved", [hugging_face(rows(2))]),
    ):
        ingest(tmp_path, table, columns=columns)
        found = list(samples(tmp_path).values())
        assert [(row["text"], row["label"]) for item in found for row in item.regions] == [
            ("apple", "apple"),
            ("zebra", "zebra"),
        ]
        boxes = [[row[name] for name in ("x1", "y1", "x2", "y2")] for item in found for row in item.regions]
        np.testing.assert_allclose(boxes, [[0.1, 0.1, 0.6, 0.6]] * 2, atol=1e-6)


def test_boxes_in_lists_of_structs_of_older_features(tmp_path: Path) -> None:
    """Sequence({...}) of older `datasets`, and shares of another size's columns."""
    objects = pa.list_(pa.struct({"bbox": pa.list_(pa.float64()), "name": pa.string()}))
    content = [
        {
            "jpg": jpeg(0),
            "objects": [{"bbox": [0.1, 0.2, 0.3, 0.4], "name": "a"}, {"bbox": [0, 0, 1, 1], "name": "b"}],
            "w": 120,
            "h": 80,
        }
    ]
    schema = pa.schema({"jpg": pa.large_binary(), "objects": objects, "w": pa.int32(), "h": pa.int32()})
    table = write_parquet(tmp_path / "t.parquet", pa.Table.from_pylist(content, schema=schema))
    ingest(tmp_path, table, columns="boxes=objects.bbox,texts=objects.name,width=w,height=h")
    regions = samples(tmp_path)["t_0"].regions
    assert [(row["text"], round(row["x2"], 6)) for row in regions] == [("a", 0.3), ("b", 1)]
    ingest(tmp_path, table, columns="boxes=objects.bbox,texts=objects.name,width=w,height=h,box_unit=pixel")
    assert round(samples(tmp_path)["t_0"].regions[0]["x2"] * 120, 5) == 0.3


def test_folder_with_key_source_licence_and_lists_of_captions(tmp_path: Path) -> None:
    def table(start: int) -> pa.Table:
        content = [
            {
                "jpg": jpeg(index),
                "key": f"v1.{index}",
                "texts": [f"a {index}", f"b {index}"] if index % 2 else None,
                "url": f"http://x/{index}",
                "license": "CC0",
            }
            for index in range(start, start + 3)
        ]
        return pa.Table.from_pylist(content)

    write_parquet(tmp_path / "t/sub/a.parquet", table(0))
    write_parquet(tmp_path / "t/b.PARQUET", table(3))
    write_parquet(tmp_path / "t/_temporary/c.parquet", table(0))
    (tmp_path / "t/notes.txt").write_text("no table")
    ingest(tmp_path, tmp_path / "t", columns="caption=texts")
    found = samples(tmp_path)
    assert list(found) == ["v1_3", "v1_4", "v1_5", "v1_0", "v1_1", "v1_2"]
    assert [row["text"] for row in found["v1_1"].captions] == ["a 1", "b 1"]
    assert found["v1_2"].captions == ()
    assert (found["v1_1"].sample.meta["source"], found["v1_1"].sample.meta["licence"]) == ("http://x/1", "CC0")


def test_texts_in_dictionaries_and_large_types(tmp_path: Path) -> None:
    captions = pa.array(["one", "two", "one"]).dictionary_encode()
    keys = pa.array([7, 8, 9], pa.uint64())
    bodies = pa.array([jpeg(index) for index in range(3)], pa.large_binary())
    table = pa.table({"img": bodies, "text": captions, "key": keys, "source": pa.array(["s"] * 3, pa.large_string())})
    ingest(tmp_path, write_parquet(tmp_path / "t.parquet", table))
    assert {key: item.captions[0]["text"] for key, item in samples(tmp_path).items()} == {
        "7": "one",
        "8": "two",
        "9": "one",
    }
    assert samples(tmp_path)["7"].sample.meta["source"] == "s"


def test_images_by_path_alone_are_read_below_their_folder(tmp_path: Path) -> None:
    (tmp_path / "t/pics").mkdir(parents=True)
    (tmp_path / "t/pics/a.jpg").write_bytes(jpeg(1))
    (tmp_path / "secret.jpg").write_bytes(jpeg(2))
    inside = str(tmp_path / "t/pics/a.jpg")
    outside = ["../secret.jpg", str(tmp_path / "secret.jpg"), f"{tmp_path}/t/../secret.jpg", "x\0.jpg"]
    paths = ["pics/a.jpg", inside, *outside, "gone.jpg", "pics", "y" * 10_000, None]
    content: list[dict[str, Any]] = [{"image": {"bytes": None, "path": path}, "caption": "x"} for path in paths]
    content.append({"image": None, "caption": "x"})
    write_parquet(tmp_path / "t/t.parquet", hugging_face(content))
    ingest(tmp_path, tmp_path / "t")
    assert list(samples(tmp_path)) == ["t_0", "t_1"]
    assert {item.sample.image for item in samples(tmp_path).values()} == {jpeg(1)}
    reasons = {key: value[0] for key, value in quarantine(tmp_path).items()}
    for number in range(2, 6):
        assert "leads out of the folder of images; name that folder in `images`" in reasons[f"t_{number}"]
    assert reasons["t_6"] == "image: its row has only the path 'gone.jpg', and the folder of images has no such file"
    assert reasons["t_7"].endswith("and the folder of images has no such file")
    assert reasons["t_8"].endswith("which cannot be read (File name too long)")
    assert reasons["t_9"] == reasons["t_10"] == "image: its row has no image"
    write_parquet(tmp_path / "other.parquet", hugging_face(content[:1]))
    ingest(tmp_path, tmp_path / "other.parquet", images=str(tmp_path / "t"))
    assert list(samples(tmp_path)) == ["other_0"]


@needs_server
def test_table_on_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s3").mkdir()
    with serving_s3(tmp_path / "s3") as server:
        use_endpoint(monkeypatch, server.endpoint)
        _check_s3(tmp_path, server)


def _check_s3(tmp_path: Path, server: Server) -> None:
    write_parquet(server.root / "bucket/t/a.parquet", hugging_face(rows(5)))
    write_parquet(server.root / "bucket/t/sub/b.parquet", hugging_face(rows(3, first=5)))
    ingest(tmp_path, "s3://bucket/t/")
    assert list(samples(tmp_path)) == [*(f"a_{index}" for index in range(5)), *(f"sub_b_{index}" for index in range(3))]
    assert [item.sample.image for item in samples(tmp_path).values()] == [jpeg(index) for index in range(8)]
    ingest(tmp_path, "s3://bucket/t/sub/b.parquet")
    assert list(samples(tmp_path)) == ["b_0", "b_1", "b_2"]
    (source,) = read_table(table="s3://bucket/t/sub/b.parquet", size=ShardSize(images=9, bytes=0)).parts
    open_storage("s3://bucket/t/sub").delete("b.parquet")
    with pytest.raises(DataError, match=r"there is no b\.parquet"):
        list(source.read())


# --- parts


def cut(sizes: list[tuple[str, int, int]], *, images: int, body: int = 0) -> list[list[tuple[str, int, int]]]:
    """Cuts chunks of (file, rows, bytes) and gives the (file, first, rows) of each shard."""
    chunks, starts = [], dict.fromkeys((path for path, _, _ in sizes), 0)
    for path, count, held in sizes:
        chunks.append(RowChunk(RowRange(path, "v", starts[path], count), held))
        starts[path] += count
    found = cut_rows(chunks, size=ShardSize(images=images, bytes=body))
    return [[(item.path, item.first, item.rows) for item in shard] for shard in found]


def test_rows_are_cut_by_count_over_groups_and_files() -> None:
    assert cut([("a", 3, 0), ("a", 4, 0), ("b", 0, 0), ("b", 1, 0), ("c", 9, 0)], images=5) == [
        [("a", 0, 5)],
        [("a", 5, 2), ("b", 0, 1), ("c", 0, 2)],
        [("c", 2, 5)],
        [("c", 7, 2)],
    ]


def test_rows_are_cut_by_bytes() -> None:
    # Ten rows of 30 bytes each, then two of 500: three rows fit into 100 bytes, 500 get a shard of their own.
    found = cut([("a", 10, 300), ("a", 2, 1000)], images=100, body=100)
    assert found == [[("a", 0, 3)], [("a", 3, 3)], [("a", 6, 3)], [("a", 9, 1)], [("a", 10, 1)], [("a", 11, 1)]]
    assert cut([("a", 10, 300)], images=2, body=100)[0] == [("a", 0, 2)]


def test_two_billion_rows_are_cut_as_they_are_asked_for() -> None:
    def chunks() -> Iterator[RowChunk]:
        for file in range(200_000):
            yield RowChunk(RowRange(f"{file}.parquet", "v", 0, 10_000), 10_000 * 100_000)
            assert file < 5, "cut further than asked for"

    shards = cut_rows(chunks(), size=ShardSize(images=1000, bytes=0))
    assert [len(next(shards)) for _ in range(50)] == [1] * 50


def test_parts_are_small_and_stable(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", hugging_face(rows(10)))
    size = ShardSize(images=4, bytes=0)
    parts = list(read_table(table=str(path), size=size).parts)
    again = list(read_table(table=str(path), size=size).parts)
    assert [part.fingerprint() for part in parts] == [part.fingerprint() for part in again]
    assert len({part.fingerprint() for part in parts}) == 3
    body = pickle.dumps(parts[1])
    assert len(body) < 2000
    assert [item.record.key for item in pickle.loads(body).read()] == ["t_4", "t_5", "t_6", "t_7"]
    other = list(read_table(table=str(path), columns="caption=caption,licence=caption", size=size).parts)
    assert other[0].fingerprint() != parts[0].fingerprint()
    write_parquet(path, hugging_face(rows(10, first=1)))
    changed = list(read_table(table=str(path), size=size).parts)
    assert changed[0].fingerprint() != parts[0].fingerprint()
    with pytest.raises(DataError, match=r"t\.parquet has changed meanwhile; run the same command again"):
        next(iter(parts[0].read()))


def test_bytes_per_shard_from_the_footers(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(hugging_face(rows(6)), path, write_statistics=False)
    held = sum(len(row["image"]["bytes"]) for row in rows(6))
    parts = list(read_table(table=str(path), size=ShardSize(images=100, bytes=held // 2 + 300)).parts)
    assert [sum(1 for _ in part.read()) for part in parts] == [3, 3]


def test_rerun_and_processes_make_no_difference(tmp_path: Path) -> None:
    saved = save_to_disk(tmp_path / "saved", [hugging_face(rows(5)), hugging_face(rows(4, first=5))])
    ingest(tmp_path, saved)
    first = files(tmp_path / "out")
    assert ingest(tmp_path, saved).counts["skipped_shards"] == 3
    ingest_source(tmp_path / "two", settings(processes=2), source="table", table=str(saved))
    assert files(tmp_path / "two/out") == first


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_images_of_a_large_group_never_lie_in_memory_together(tmp_path: Path, kind: str) -> None:
    body = np.random.default_rng(0).bytes(100_000)
    table = pa.table({"image": pa.array([body] * 600), "n": list(range(600))})  # 60 MB in one row group
    if kind == "parquet":
        path = tmp_path / "t.parquet"
        # Pages of 16 images: a page is what is read at once.
        pq.write_table(table, path, row_group_size=600, use_dictionary=False, write_batch_size=16)
    else:
        path = save_to_disk(tmp_path / "t", [table])
    (part,) = read_table(table=str(path), size=ShardSize(images=1000, bytes=0)).parts
    before, largest, count = pa.total_allocated_bytes(), 0, 0
    for item in part.read():
        assert item.body == body
        count += 1
        largest = max(largest, pa.total_allocated_bytes() - before)
    assert count == 600
    assert largest < 40 << 20


# --- what is broken


def broken(tmp_path: Path, table: Path | str, **inputs: str) -> str:
    with pytest.raises(DataError) as caught:
        ingest(tmp_path, table, **inputs)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out/manifest.json").exists()
    return str(caught.value)


LISTS = pa.table({"images": pa.array([[{"bytes": b"x", "path": ""}]], pa.list_(IMAGE))})
TWO = pa.table({"a": pa.array([b"x"]), "b": pa.array([b"x"])})
PLAIN = pa.table({"image": pa.array([b"x"]), "caption": ["x"], "text": ["y"], "n": [1], "f": [[[0.0, 0, 1, 1]]]})


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [
        (pa.table({"n": [1], "s": ["x"]}), "", "has no column of images .* it has: n \\(int64\\), s \\(string\\)"),
        (TWO, "", "has several columns of images: a, b; name one: columns image=..."),
        (LISTS, "", "column 'images' has lists of images; write a row for each image"),
        (LISTS, "image=images", "column 'images' has lists of images"),
        (PLAIN, "", "caption or text can be the caption; name one: columns caption=..."),
        (PLAIN, "image=caption,caption=text", "column 'caption' \\(image\\) has the type string, not struct of bytes"),
        (PLAIN, "caption=n", "column 'n' \\(caption\\) has the type int64, not text or list of texts"),
        (PLAIN, "caption=nope", "has no column 'nope' \\(caption\\); it has: image, caption, text, n, f"),
        (PLAIN, "caption=text.x", "has no column 'text.x' \\(caption\\)"),
        (PLAIN, "caption=text,key=f", "column 'f' \\(key\\) has the type .*, not text or whole number"),
        (PLAIN, "caption=text,boxes=f", "boxes and texts belong together"),
        (PLAIN, "caption=text,width=n", "width and height belong together"),
        (PLAIN, "caption=text,boxes=n,texts=text", "column 'n' \\(boxes\\) has the type int64"),
        (PLAIN, "caption=text,box_unit=mm", "columns: box_unit is share or pixel, got 'mm'"),
        (PLAIN, "caption=text,picture=a", "columns: 'picture' means nothing here; there are: image, caption"),
        (
            pa.table({"image": pa.array([b"x"]), "b": [[[0.0] * 4]], "t": [[1]]}),
            "boxes=b,texts=t",
            "column 't' \\(texts\\) has numbers, and the schema names no classes",
        ),
        (TWO.rename_columns(["a", "a"]), "image=a", "has more than one column 'a'"),
        (PLAIN.replace_schema_metadata({"huggingface": "{"}), "", "the metadata `huggingface` of its schema is broken"),
    ],
)
def test_wrong_columns_are_one_line(tmp_path: Path, table: pa.Table, columns: str, message: str) -> None:
    path = write_parquet(tmp_path / "t.parquet", table)
    with pytest.raises(DataError, match=message) as caught:
        ingest(tmp_path, path, columns=columns)
    assert "\n" not in str(caught.value)


def test_files_that_differ_are_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "t/a.parquet", hugging_face(rows(2)))
    write_parquet(tmp_path / "t/b.parquet", pa.table({"image": pa.array([jpeg(1)])}))
    said = broken(tmp_path, tmp_path / "t")
    assert "b.parquet has other columns than a.parquet (image_is_struct: 'False', not 'True')" in said


def test_splits_are_not_mixed(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / f"t/data/{split}-00000-of-00001.parquet", hugging_face(rows(2)))
        save_to_disk(tmp_path / "saved" / split, [hugging_face(rows(2))])
    assert "mixes the splits test, train; name one, as in" in broken(tmp_path, tmp_path / "t")
    (tmp_path / "saved/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    said = broken(tmp_path, tmp_path / "saved")
    assert said.endswith("holds the splits train, test: name one, as in " + str(tmp_path / "saved/train"))
    assert ingest(tmp_path, tmp_path / "saved/test").counts["images"] == 2
    assert ingest(tmp_path, f"{tmp_path}/t/data/train-*").counts["images"] == 2
    assert ingest(tmp_path, f"{tmp_path}/t/data/t?*in-*").counts["images"] == 2


def test_files_whose_rows_would_share_keys(tmp_path: Path) -> None:
    write_parquet(tmp_path / "t/a b.parquet", hugging_face(rows(1)))
    write_parquet(tmp_path / "t/a_b.parquet", hugging_face(rows(1)))
    said = broken(tmp_path, tmp_path / "t")
    assert "rows of 'a b.parquet' and 'a_b.parquet' would have the same keys" in said


def test_rows_with_one_key_are_both_named(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([jpeg(index) for index in range(3)]), "key": ["a b", "c", "a/b"]})
    said = broken(tmp_path, write_parquet(tmp_path / "t.parquet", table))
    assert "row 0 of t.parquet and row 2 of t.parquet have the same key 'a_b'" in said


def damaged(path: Path, change: Callable[[bytes], bytes]) -> Path:
    path.write_bytes(change(path.read_bytes()))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: b"", "no Parquet file, or is cut short"),
        (lambda body: body[:-20], "no Parquet file, or is cut short"),
        (lambda body: b"PAR1" + b"\xff" * 200 + body[-8:], "is broken"),
        (lambda body: body[:-8] + b"\xff\xff\xff\x7fPAR1", "is broken"),
        (lambda body: body[:-4] + b"PARE", "is encrypted"),
        (lambda body: body[:4] + b"\xff" * 500 + body[504:], "is broken"),
    ],
)
def test_damaged_parquet_is_one_line(tmp_path: Path, change: Callable[[bytes], bytes], message: str) -> None:
    path = damaged(write_parquet(tmp_path / "t.parquet", hugging_face(rows(4))), change)
    said = broken(tmp_path, path)
    assert message in said
    assert "t.parquet" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: b"", "no Arrow stream, or is cut short"),
        (lambda body: body[: len(body) // 2], "no Arrow stream, or is cut short"),
        (lambda body: body[: len(body) // 2] + body[-8:], "is broken"),
        (lambda body: b"\0" * 64 + body[-8:], "is broken"),
    ],
)
def test_damaged_arrow_is_one_line(tmp_path: Path, change: Callable[[bytes], bytes], message: str) -> None:
    saved = save_to_disk(tmp_path / "saved", [hugging_face(rows(8))])
    damaged(saved / "data-00000-of-00001.arrow", change)
    said = broken(tmp_path, saved)
    assert message in said
    assert "data-00000-of-00001.arrow" in said


def test_offsets_that_lead_out_of_their_buffer_are_found(tmp_path: Path) -> None:
    offsets = pa.py_buffer(np.array([0, 3, 1 << 30, 9], np.int32).tobytes())
    hostile = pa.Array.from_buffers(pa.binary(), 3, [None, offsets, pa.py_buffer(b"abcdefghi")])
    saved = save_to_disk(tmp_path / "saved", [pa.table({"image": hostile})])
    assert "is broken" in broken(tmp_path, saved)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("{", "state.json is not valid JSON"),
        ("[]", "state.json names no data files"),
        ('{"_data_files": [{"filename": 3}]}', "state.json names no data files"),
        ('{"_data_files": [{"filename": "../x.arrow"}]}', "'../x.arrow' points outside"),
        ('{"_data_files": [{"filename": "gone.arrow"}]}', "there is no gone.arrow"),
    ],
)
def test_broken_state_is_one_line(tmp_path: Path, state: str, message: str) -> None:
    saved = save_to_disk(tmp_path / "saved", [hugging_face(rows(1))])
    (saved / "state.json").write_text(state)
    assert message in broken(tmp_path, saved)


def test_no_table_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for table in (tmp_path / "empty", tmp_path / "none.parquet", f"{tmp_path}/*.parquet"):
        assert "there are no Parquet files at" in broken(tmp_path, table)
    assert "table: the source 'table' needs it" in broken(tmp_path, "")


def read_one(tmp_path: Path, table: pa.Table, columns: str = "") -> list[Item]:
    path = write_parquet(tmp_path / "t.parquet", table)
    (part,) = read_table(table=str(path), columns=columns, size=ShardSize(images=100, bytes=0)).parts
    return list(part.read())


def test_rows_that_cannot_be_used_cost_only_themselves(tmp_path: Path) -> None:
    texts = pa.array([b"good", b"\xff\xfe", None, b"", b"x"]).view(pa.string())
    keys = pa.array(["a", "b", None, "", "../../e"])
    table = pa.table({"image": pa.array([b"1", b"2", b"3", b"4", b"5"]), "caption": texts, "key": keys})
    found = read_one(tmp_path, table)
    assert [item.record.key for item in found] == ["a", "t_1", "t_2", "t_3", "______e"]
    assert [item.body for item in found] == [
        b"1",
        Refusal("its row has a text that is not UTF-8"),
        Refusal("its row has no key"),
        Refusal("its row has no key"),
        b"5",
    ]


def test_boxes_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    boxes = [[[0, 0, 1, 1], [0, 0, 1]], [[0, 0, 1, 1]], None, [[0, 0, 1, float("nan")]], [[0, 0, 5, 5]]]
    names = [["a", "b"], ["a", "b"], None, ["a"], ["a"]]
    table = pa.table(
        {
            "image": pa.array([b"not an image"] * 5),
            "b": pa.array(boxes, pa.list_(pa.list_(pa.float64()))),
            "t": names,
        }
    )
    found = [item.record for item in read_one(tmp_path, table, "boxes=b,texts=t")]
    assert [len(record.boxes) for record in found] == [1, 0, 0, 0, 1]
    assert found[0].problems == ("box: number 1: expected four numbers, got [0.0, 0.0, 1.0]",)
    assert found[1].problems == ("box: 1 boxes and 2 texts do not belong together",)
    assert found[2].problems == ()
    assert found[3].problems[0].startswith("box: number 0: expected four numbers")
    pixels = [item.record for item in read_one(tmp_path, table, "boxes=b,texts=t,box_unit=pixel")]
    assert pixels[4].problems == ("box: 1 boxes in pixels of an image of unknown size",)


def test_number_of_no_class_is_refused(tmp_path: Path) -> None:
    content = rows(1)
    content[0]["objects"]["category"] = [7]
    columns = "boxes=objects.bbox,texts=objects.category,box_format=xywh,box_unit=pixel"
    ingest(tmp_path, write_parquet(tmp_path / "t.parquet", hugging_face(content)), columns=columns)
    assert quarantine(tmp_path)["t_0"][0].startswith("box: empty text")


def test_names_of_files_make_plain_keys(tmp_path: Path) -> None:
    name = f"v1.0 {'苹' * 60}"
    write_parquet(tmp_path / f"t/{name}.parquet", hugging_face(rows(2)))
    ingest(tmp_path, tmp_path / "t")
    first, second = samples(tmp_path)
    assert first != second
    assert first.isascii()
    assert len(first) <= 95


def test_table_that_ends_too_early(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", hugging_face(rows(3)))
    (part,) = read_table(table=str(path), size=ShardSize(images=9, bytes=0)).parts
    assert isinstance(part, TablePart)
    (held,) = part.ranges
    longer = TablePart(
        root=part.root,
        images=part.images,
        plan=TablePlan(image=("image",), image_is_struct=True),
        ranges=(RowRange(held.path, held.version, first=1, rows=5),),
    )
    with pytest.raises(DataError, match=r"t\.parquet ends 3 rows too early"):
        list(longer.read())
