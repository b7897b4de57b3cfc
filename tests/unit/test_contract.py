"""The data contract: shards, tables, manifests and storages; what is broken is told."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cloc.data import tables
from cloc.data.dataset import Dataset, resolve_split, write_manifest
from cloc.data.schema import SCHEMAS, Manifest, Shard
from cloc.data.shards import MAX_KEY, Sample, ShardWriter, read_shard
from cloc.data.storage import FolderStorage, open_storage
from cloc.errors import DataError

SAMPLES = [
    Sample(key=f"k{index}", image=bytes([index]) * (700 + index), suffix=suffix, meta={"alt_text": "Äpfel", "n": index})
    for index, suffix in enumerate(["jpg", "png", "webp"])
]
REGION = {"key": "k0", "x1": 0.0, "y1": 0.25, "x2": 0.5, "y2": 1.0, "text": "a", "score": 1.0, "source": "human"}
ROWS: dict[str, list[dict[str, Any]]] = {
    "captions": [{"key": "k0", "text": "ein Apfel 🍎", "kind": "human", "model": ""}],
    "regions": [{**REGION, "label": "apple"}],
    "attributes": [
        {"key": "k0", "x1": 0.0, "y1": 0.25, "x2": 0.5, "y2": 1.0, "text": "a red key", "level": "1_attributes"}
        | {"negatives": ["a blue key", "a red mug"], "source": "human"}
    ],
    "quarantine": [{"key": "k9", "stage": "ingest", "reason": "image: empty file"}],
}


def tar_of(samples: list[Sample]) -> bytes:
    folder = MemoryStorage()
    writer = ShardWriter()
    for sample in samples:
        writer.add(sample)
    writer.write(folder, "00000")
    return folder.objects["images/00000.tar"]


class MemoryStorage(FolderStorage):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__("/nowhere")
        self.objects: dict[str, bytes] = {}

    def write_bytes(self, path: str, body: bytes) -> None:
        self.objects[path] = body


def make_dataset(root: Path, samples: list[Sample] = SAMPLES) -> Dataset:
    storage = FolderStorage(root)
    writer = ShardWriter()
    for sample in samples:
        writer.add(sample)
    write_manifest(storage, Manifest(shards=(writer.write(storage, "00000"),), classes=("apple",)))
    return Dataset.open(root)


# --- shards


def test_samples_come_back_as_they_were() -> None:
    assert list(read_shard(io.BytesIO(tar_of(SAMPLES)), source="x")) == SAMPLES


def test_equal_samples_give_equal_bytes() -> None:
    assert tar_of(SAMPLES) == tar_of(list(SAMPLES))
    assert tar_of(SAMPLES) != tar_of(SAMPLES[::-1])


@pytest.mark.parametrize("key", ["", "a/b", "../x", "a.b", "a b", "ä", "k\n", "x" * (MAX_KEY + 1)])
def test_bad_key_is_refused(key: str) -> None:
    with pytest.raises(DataError, match="letters, digits"):
        ShardWriter().add(Sample(key=key, image=b"x"))


def test_longest_key_fits_a_tar() -> None:
    sample = Sample(key="x" * MAX_KEY, image=b"x", suffix="webp")
    assert list(read_shard(io.BytesIO(tar_of([sample])), source="x")) == [sample]


def test_repeated_key_and_other_suffix_are_refused() -> None:
    writer = ShardWriter()
    writer.add(SAMPLES[0])
    with pytest.raises(DataError, match="'k0' stands twice"):
        writer.add(SAMPLES[0])
    with pytest.raises(DataError, match="got 'gif'"):
        writer.add(Sample(key="z", image=b"x", suffix="gif"))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "empty, truncated or not a tar"),
        (b"no tar at all" * 100, "empty, truncated or not a tar"),
        (bytes(10240), "empty shard"),
        (tar_of([]), "empty shard"),
    ],
)
def test_empty_shard_is_told_by_name(body: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=f"^s/00007.tar: {reason}"):
        list(read_shard(io.BytesIO(body), source="s/00007.tar"))


def test_shard_cut_anywhere_is_told() -> None:
    body = tar_of(SAMPLES)
    end = body.rstrip(b"\0")
    for cut in range(0, len(end), 100):
        with pytest.raises(DataError, match=r"s\.tar"):
            list(read_shard(io.BytesIO(body[:cut]), source="s.tar"))
    # Cut exactly between two samples, where the tar format alone would not tell.
    between = len(tar_of(SAMPLES[:2]).rstrip(b"\0")) // 512 * 512 + 512
    with pytest.raises(DataError, match="the tar ends before its end-of-archive mark"):
        list(read_shard(io.BytesIO(body[:between]), source="s.tar"))


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/x.jpg", "a b.jpg", ".jpg", "d/x.jpg"])
def test_hostile_member_names_are_refused(name: str) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(DataError, match=r"s\.tar: member"):
        list(read_shard(io.BytesIO(sink.getvalue()), source="s.tar"))


def test_sample_without_image_and_with_broken_json() -> None:
    def tar(name: str) -> io.BytesIO:
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w") as archive:
            for member in ("a.jpg", name) if name == "a.json" else (name,):
                info = tarfile.TarInfo(member)
                info.size = 1
                archive.addfile(info, io.BytesIO(b"{"))
        return io.BytesIO(sink.getvalue())

    with pytest.raises(DataError, match="'b' has no image"):
        list(read_shard(tar("b.txt"), source="s"))
    with pytest.raises(DataError, match="'a' has broken JSON"):
        list(read_shard(tar("a.json"), source="s"))


# --- data sets


def test_data_set_reads_back_joined(tmp_path: Path) -> None:
    data = make_dataset(tmp_path)
    assert data.rows("attributes", data.manifest.shards[0]) == {}
    for name in ("captions", "regions", "attributes"):
        tables.write_table(FolderStorage(tmp_path), name, "00000", ROWS[name])
    found = list(data.read_all())
    assert data.rows("attributes", data.manifest.shards[0]) == {"k0": ROWS["attributes"]}
    assert [item.sample for item in found] == SAMPLES
    assert list(found[0].captions) == ROWS["captions"]
    assert list(found[0].regions) == ROWS["regions"]
    assert found[1].captions == found[1].regions == ()
    data.check(data.manifest.shards[0])


def test_shard_emptied_or_cut_on_disk_is_named(tmp_path: Path) -> None:
    data = make_dataset(tmp_path)
    tar = tmp_path / "images/00000.tar"
    whole = tar.read_bytes()
    for body in (b"", whole[: len(whole) // 2], tar_of([])):
        tar.write_bytes(body)
        with pytest.raises(DataError, match=r"images/00000\.tar: "):
            list(data.read_all())
    tar.write_bytes(tar_of(SAMPLES[:2]))
    with pytest.raises(DataError, match=r"00000\.tar: 2 samples, the manifest says 3"):
        list(data.read_all())
    tar.unlink()
    with pytest.raises(DataError, match=r"there is no images/00000\.tar"):
        list(data.read_all())


@pytest.mark.parametrize("table", ["captions", "regions", "attributes"])
def test_table_of_another_data_set_is_told(tmp_path: Path, table: Any) -> None:
    data = make_dataset(tmp_path)
    tables.write_table(FolderStorage(tmp_path), table, "00000", [{**ROWS[table][0], "key": "stranger"}])
    with pytest.raises(DataError, match=rf"{table}/00000\.parquet has 1 keys that are not in .*'stranger'"):
        data.check(data.manifest.shards[0])


def test_no_manifest_and_broken_manifests(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set here"):
        Dataset.open(tmp_path)
    good = json.loads(Manifest(shards=()).to_json())
    for body in ("{", "[]", "{}", json.dumps({**good, "shards": [{"name": "x"}]})):
        (tmp_path / "manifest.json").write_text(body)
        with pytest.raises(DataError, match="not a manifest"):
            Dataset.open(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({**good, "schema_version": 99}))
    with pytest.raises(DataError, match="schema version 99 is not 1"):
        Dataset.open(tmp_path)


def test_manifest_reads_back_and_is_stable() -> None:
    shard = Shard(name="00000", path="images/00000.tar", images=3, bytes=10, sha256="ab")
    manifest = Manifest(shards=(shard,), quarantined=2, classes=("a", "b"), made_by={"tool": "t"})
    assert Manifest.from_json(manifest.to_json(), source="m") == manifest
    assert manifest.to_json() == manifest.to_json()


def test_resolve_split(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train")
    assert resolve_split(tmp_path, "train") == f"{tmp_path}/train"
    assert resolve_split(tmp_path / "train", "test") == str(tmp_path / "train")
    with pytest.raises(DataError, match="neither a data set nor a collection with a split 'test'"):
        resolve_split(tmp_path, "test")


# --- tables


@pytest.mark.parametrize("table", ["captions", "regions", "quarantine", "attributes"])
def test_tables_round_trip(tmp_path: Path, table: Any) -> None:
    storage = FolderStorage(tmp_path)
    assert not tables.has_table(storage, table, "00000")
    assert tables.write_table(storage, table, "00000", ROWS[table]) == 1
    assert tables.read_table(storage, table, "00000").to_pylist() == ROWS[table]
    first = (tmp_path / table / "00000.parquet").read_bytes()
    tables.write_table(storage, table, "00000", ROWS[table])
    assert (tmp_path / table / "00000.parquet").read_bytes() == first


def test_empty_table_keeps_its_columns(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    assert tables.write_table(storage, "regions", "00000", []) == 0
    assert tables.read_table(storage, "regions", "00000").num_rows == 0


def test_lists_that_another_writer_made_are_read(tmp_path: Path) -> None:
    """Parquet writers name the entries of a list differently; the contract does not."""
    row = ROWS["attributes"][0]
    entries = pa.field("negatives", pa.list_(pa.field("element", pa.string())))
    schema = pa.schema([entries if item.name == "negatives" else item for item in SCHEMAS["attributes"]])
    (tmp_path / "attributes").mkdir()
    pq.write_table(pa.Table.from_pylist([row], schema=schema), tmp_path / "attributes/00000.parquet")
    assert tables.read_table(FolderStorage(tmp_path), "attributes", "00000").to_pylist() == [row]


def test_is_current_only_for_equal_input_and_settings(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)

    def current(input_hash: str, config_hash: str) -> bool:
        return tables.is_current(storage, "captions", "00000", input_hash=input_hash, config_hash=config_hash)

    assert not current("in", "set")
    tables.write_table(storage, "captions", "00000", ROWS["captions"], input_hash="in", config_hash="set")
    assert current("in", "set")
    assert not current("other", "set")
    assert not current("in", "other")
    (tmp_path / "captions/00000.parquet").write_bytes(b"PAR1 cut")
    assert not current("in", "set")


def test_broken_or_foreign_tables_are_named(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    storage.write_bytes("captions/00000.parquet", b"")
    with pytest.raises(DataError, match=r"captions/00000\.parquet: not readable"):
        tables.read_table(storage, "captions", "00000")
    tables.write_table(storage, "quarantine", "00000", ROWS["quarantine"])
    os.replace(tmp_path / "quarantine/00000.parquet", tmp_path / "captions/00000.parquet")
    with pytest.raises(DataError, match=r"columns .*reason.* are not the contract's"):
        tables.read_table(storage, "captions", "00000")


def test_row_of_the_wrong_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        tables.write_table(FolderStorage(tmp_path), "regions", "00000", [{**ROWS["regions"][0], "x1": "left"}])
    assert not (tmp_path / "regions").exists()


# --- storage


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a\0b"])
def test_paths_out_of_the_root_are_refused(tmp_path: Path, path: str) -> None:
    storage = FolderStorage(tmp_path / "root")
    for act in (storage.read_bytes, storage.exists, storage.delete, lambda path: storage.write_bytes(path, b"x")):
        with pytest.raises(DataError, match="points outside"):
            act(path)
    assert not (tmp_path / "x").exists()


def test_a_write_that_fails_leaves_the_old_object_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = FolderStorage(tmp_path)
    storage.write_bytes("a/b", b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DataError, match=r"No space left .*free some space"):
        storage.write_bytes("a/b", b"new")
    assert storage.read_bytes("a/b") == b"old"
    assert storage.list("a") == ["a/b"]
    assert [item.name for item in (tmp_path / "a").iterdir()] == ["b"]


def test_list_write_file_and_delete(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path / "root")
    assert storage.list("a") == []
    source = tmp_path / "source"
    source.write_bytes(b"body")
    storage.write_file("a/c", source)
    storage.write_bytes("a/b/d", b"x")
    assert not source.exists()
    assert storage.list("a") == ["a/b/d", "a/c"]
    assert storage.read_bytes("a/c") == b"body"
    storage.delete("a/c")
    storage.delete("a/c")
    assert not storage.exists("a/c")
    with pytest.raises(DataError, match="there is no a/c"):
        storage.open("a/c")


def test_unknown_scheme_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="storage gs:// is unknown"):
        open_storage("gs://bucket")
    assert open_storage(f"file://{tmp_path}").url == str(tmp_path)
