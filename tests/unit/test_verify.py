"""`cloc data verify` on folders: what differs is named, and what was read is not read again."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloc.cli import main
from cloc.config import parse
from cloc.data import tables
from cloc.data.schema import MANIFEST, Manifest
from cloc.data.storage import FolderStorage, StorageError, Trouble
from cloc.data.verify.check import Request, verify
from cloc.data.verify.record import Record, default_path
from cloc.data.verify.report import Kind, Report, Way
from cloc.errors import DataError
from cloc.labeling import captioning, grounding
from tests import tar_sets

SHARDS = 3


@pytest.fixture
def data(tmp_path: Path, make_dataset: Callable[..., str]) -> Path:
    return Path(make_dataset(tmp_path / "data", 4 * SHARDS))


def check(data: Path | str, *, record: Path | None = None, fresh: bool = False, **options: Any) -> Report:
    with Record(record, of=str(data), forget=fresh) as kept:
        return verify(Request(data=str(data), threads=2, fresh=fresh, **options), record=kept)


def differences(report: Report) -> list[tuple[Kind, str]]:
    return [(item.kind, item.path) for item in report.differences]


def manifest_of(data: Path) -> Any:
    return json.loads((data / MANIFEST).read_text())


def flip(path: Path, at: int) -> None:
    """Changes one byte and nothing else of a file, its time included."""
    before, body = path.stat(), bytearray(path.read_bytes())
    body[at] ^= 1
    path.write_bytes(body)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_equal_set(data: Path) -> None:
    report = check(data)
    assert report.ok
    assert report.ways == {Way.READ: SHARDS}
    assert report.read_bytes == report.bytes == sum(path.stat().st_size for path in data.glob("images/*"))
    assert (report.shards, report.images) == (SHARDS, 4 * SHARDS)
    assert report.tables == {"captions": SHARDS, "regions": SHARDS}
    assert "all equal" in report.summary


DAMAGE: dict[str, tuple[Callable[[Path], Any], Kind, str]] = {
    "a bit": (lambda data: flip(data / "images/00001.tar", 700), Kind.SHA256, "images/00001.tar"),
    "cut": (lambda data: os.truncate(data / "images/00001.tar", 1024), Kind.SIZE, "images/00001.tar"),
    "gone": (lambda data: (data / "images/00001.tar").unlink(), Kind.MISSING, "images/00001.tar"),
    "more": (lambda data: (data / "images/00009.tar").touch(), Kind.EXTRA, "images/00009.tar"),
    "stray": (lambda data: (data / "notes.txt").touch(), Kind.EXTRA, "notes.txt"),
    "table gone": (lambda data: (data / "regions/00002.parquet").unlink(), Kind.MISSING, "regions/00002.parquet"),
    "table more": (
        lambda data: shutil.copy(data / "captions/00000.parquet", data / "captions/00007.parquet"),
        Kind.EXTRA,
        "captions/00007.parquet",
    ),
    "no table": (lambda data: os.truncate(data / "captions/00000.parquet", 99), Kind.TABLE, "captions/00000.parquet"),
    "table's bit": (lambda data: flip(data / "captions/00000.parquet", 60), Kind.TABLE, "captions/00000.parquet"),
    "another's table": (
        lambda data: tables.write_table(FolderStorage(data), "captions", "00000", [], input_hash="0" * 64),
        Kind.TABLE,
        "captions/00000.parquet",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_differs_is_named_and_nothing_else(data: Path, name: str) -> None:
    damage, kind, path = DAMAGE[name]
    damage(data)
    report = check(data)
    assert differences(report) == [(kind, path)]
    assert not report.ok
    assert f"1 {kind}" in report.summary
    assert path in next(report.lines())


def test_sizes_only_reads_nothing_and_sees_sizes(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(data / "images/00000.tar", 700)
    os.truncate(data / "images/00001.tar", 1024)
    (data / "regions/00002.parquet").unlink()

    def refuse(storage: FolderStorage, path: str) -> Any:
        assert path == MANIFEST, f"{path} is read"
        return original(storage, path)

    original = FolderStorage.read_bytes
    monkeypatch.setattr(FolderStorage, "read_bytes", refuse)
    monkeypatch.setattr(FolderStorage, "open", refuse)
    report = check(data, hashed=0)
    assert differences(report) == [(Kind.SIZE, "images/00001.tar"), (Kind.MISSING, "regions/00002.parquet")]
    assert report.ways == {Way.SIZE: SHARDS - 1}
    found = report.differences[0]
    assert (found.expected, found.found) == (manifest_of(data)["shards"][1]["bytes"], 1024)


def test_tables_may_be_left_unread(data: Path) -> None:
    flip(data / "captions/00000.parquet", 60)
    assert differences(check(data)) == [(Kind.TABLE, "captions/00000.parquet")]
    report = check(data, reads_tables=False)
    assert report.ok
    assert (report.ways, report.tables) == ({Way.READ: SHARDS}, {})


def test_a_sample_is_hashed_and_of_the_rest_the_size(data: Path) -> None:
    report = check(data, hashed=2)
    assert report.ways == {Way.READ: 2, Way.SIZE: 1}
    assert report.tables == {"captions": 2, "regions": 2}
    assert check(data, hashed=99).ways == {Way.READ: SHARDS}
    found = Counter[str]()
    flip(data / "images/00001.tar", 700)
    for _ in range(60):
        found.update(item.path for item in check(data, hashed=1).differences)
    assert 1 <= found["images/00001.tar"] < 60, "the sample is always the same"


def test_a_wrong_hash_says_what_was_found(data: Path) -> None:
    expected = manifest_of(data)["shards"][1]["sha256"]
    shutil.copy(data / "images/00002.tar", data / "images/00001.tar")
    entry = manifest_of(data)
    entry["shards"][1]["bytes"] = entry["shards"][2]["bytes"]
    entry["shards"][1]["images"], entry["images"] = 5, entry["images"] + 1
    (data / MANIFEST).write_text(json.dumps(entry))
    (found,) = check(data).differences
    assert (found.kind, found.expected, found.found) == (Kind.SHA256, expected, entry["shards"][2]["sha256"])
    assert "4 samples, the manifest says 5" in found.detail


# --- manifests


def test_another_manifest_says_how_the_own_one_differs(data: Path, tmp_path: Path) -> None:
    tracked = tmp_path / "train.json"
    body = manifest_of(data)
    del body["shards"][2]
    body["images"] -= 4
    tracked.write_text(json.dumps(body))
    report = check(data, against=str(tracked))
    of_the_new = [f"{folder}/00002.{end}" for folder, end in (("captions", "parquet"), ("images", "tar"))]
    assert differences(report) == [
        (Kind.MANIFEST, MANIFEST),
        *[(Kind.EXTRA, path) for path in (*of_the_new, "regions/00002.parquet")],
    ]
    assert report.differences[0].detail == "the data set's own is another: 1 shards more (00002)"
    assert report.manifest == str(tracked)
    (data / MANIFEST).unlink()
    assert differences(check(data, against=str(tracked)))[0] == (Kind.MISSING, MANIFEST)


def test_a_copy_of_the_manifest_is_as_good(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(data / MANIFEST, tmp_path / "train.json")
    monkeypatch.chdir(tmp_path)
    assert check(data, against="train.json").ok
    assert check("data", against=str(tmp_path / "train.json")).ok


def test_a_manifest_that_contradicts_itself(data: Path) -> None:
    body = manifest_of(data)
    body["images"] += 1
    body["shards"][2]["name"] = "00001"
    (data / MANIFEST).write_text(json.dumps(body))
    count, name = check(data, hashed=0).differences[:2]
    assert (count.kind, count.expected, count.found) == (Kind.COUNT, 4 * SHARDS + 1, 4 * SHARDS)
    assert (name.kind, name.detail) == (Kind.MANIFEST, "00001: the name of several shards")


def test_a_manifest_of_another_version(data: Path, tmp_path: Path) -> None:
    shutil.copy(data / MANIFEST, tmp_path / "train.json")
    body = manifest_of(data)
    (data / MANIFEST).write_text(json.dumps({**body, "schema_version": 2}))
    with pytest.raises(DataError, match="schema version 2 is not 1"):
        check(data)
    (found,) = check(data, against=str(tmp_path / "train.json")).differences
    assert (found.kind, found.path) == (Kind.MANIFEST, MANIFEST)
    assert "schema version 2 is not 1" in found.detail


def test_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data set here \(there is no manifest.json\); name a split"):
        check(tmp_path)
    with pytest.raises(DataError, match=r"there is no nothing\.json"):
        check(tmp_path, against=str(tmp_path / "nothing.json"))


# --- the record


def test_what_was_read_is_not_read_again_until_it_changes(data: Path, tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    assert check(data, record=record).ways == {Way.READ: SHARDS}
    again = check(data, record=record)
    assert again.ways == {Way.RECORD: SHARDS}
    assert again.read_bytes == 0
    os.utime(data / "images/00001.tar", ns=(1, 1))
    assert check(data, record=record).ways == {Way.RECORD: SHARDS - 1, Way.READ: 1}
    # Bytes that rot keep size and time: only --fresh sees them, and its word is what the record then holds.
    flip(data / "images/00002.tar", 700)
    assert check(data, record=record).ok
    assert differences(check(data, record=record, fresh=True)) == [(Kind.SHA256, "images/00002.tar")]
    assert differences(check(data, record=record)) == [(Kind.SHA256, "images/00002.tar")]


def test_the_record_serves_another_manifest(data: Path, tmp_path: Path) -> None:
    """It holds what was found, not what was expected."""
    record, body = tmp_path / "record.jsonl", manifest_of(data)
    body["shards"][0]["sha256"] = "0" * 64
    (tmp_path / "wrong.json").write_text(json.dumps(body))
    assert check(data, record=record).ok
    report = check(data, record=record, against=str(tmp_path / "wrong.json"))
    assert (Kind.SHA256, "images/00000.tar") in differences(report)
    assert report.read_bytes == 0


def test_a_run_that_failed_goes_on_where_it_stopped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, original = tmp_path / "record.jsonl", FolderStorage.open

    def fail(storage: FolderStorage, path: str) -> Any:
        if path == "images/00002.tar":
            raise StorageError("the server keeps failing", Trouble.FAILING)
        return original(storage, path)

    with monkeypatch.context() as patch:
        patch.setattr(FolderStorage, "open", fail)
        with Record(record, of="data") as kept, pytest.raises(StorageError, match="keeps failing"):
            verify(Request(data=str(data), threads=1), record=kept)
    assert check(data, record=record).ways == {Way.RECORD: 2, Way.READ: 1}


def test_a_line_that_was_cut_is_read_again(data: Path, tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    check(data, record=record)
    record.write_bytes(record.read_bytes()[:-20])
    assert check(data, record=record).ways == {Way.RECORD: SHARDS - 1, Way.READ: 1}
    assert check(data, record=record).ways == {Way.RECORD: SHARDS}


def test_the_record_stays_small(data: Path, tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    for _ in range(9):
        check(data, record=record, fresh=True)
    assert len(record.read_text().splitlines()) <= 3 * SHARDS + 1
    assert check(data, record=record).ways == {Way.RECORD: SHARDS}


def test_a_record_that_is_none(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a record of `cloc data verify`"):
        check(data, record=data / MANIFEST)
    (tmp_path / "broken.jsonl").write_text('{"record": 1}\n["a"]\n')
    with pytest.raises(DataError, match="the record is broken"):
        check(data, record=tmp_path / "broken.jsonl")
    with pytest.raises(DataError, match=r"cannot keep the record here \(.*\); name another --record"):
        check(data, record=data / MANIFEST / "record.jsonl")


def test_records_lie_apart_by_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOC_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert default_path("data/train") == default_path(str(tmp_path / "data/train/")) != default_path("data/test")
    assert default_path("s3://bucket/train") == default_path("s3://bucket/train/")
    monkeypatch.setenv("CLOC_CACHE", "none")
    assert default_path("data/train") is None


def test_a_shard_that_is_written_meanwhile(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "record.jsonl"
    monkeypatch.setattr(FolderStorage, "version", lambda storage, path: "another")
    assert differences(check(data, record=record)) == [(Kind.CHANGING, f"images/0000{n}.tar") for n in range(SHARDS)]
    monkeypatch.undo()
    assert check(data, record=record).ways == {Way.READ: SHARDS}, "what was found of it was kept"


def test_a_shard_that_may_not_be_read_is_one_difference(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = FolderStorage.open

    def deny(storage: FolderStorage, path: str) -> Any:
        if path == "images/00001.tar":
            raise StorageError("access denied", Trouble.DENIED)
        return original(storage, path)

    monkeypatch.setattr(FolderStorage, "open", deny)
    report = check(data)
    assert [(item.kind, item.detail) for item in report.differences] == [(Kind.UNREADABLE, "access denied")]
    assert report.ways == {Way.READ: SHARDS - 1}


# --- tars that lie elsewhere


def test_tars_elsewhere(tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    tar_sets.img2dataset(tars)
    tar_sets.write_tar(tars / "00003.tar", [*tar_sets.sample("good", 50), tar_sets.Member("bad.jpg", b"no picture")])
    tar_sets.ingest(tmp_path, tars)
    report = check(tmp_path / "out")
    assert report.ok, report.differences
    assert report.ways == {Way.READ: 4}
    assert report.unknown == {}
    storage = FolderStorage(tmp_path / "out")
    info = tables.table_info(storage, "quarantine", "00003")
    assert info is not None
    tables.write_table(storage, "quarantine", "00003", [], input_hash=info.input_hash)
    (tars / "00001.tar").unlink()
    report = check(tmp_path / "out")
    assert sorted(differences(report)) == [
        (Kind.MISSING, str(tars / "00001.tar")),
        (Kind.TABLE, "quarantine/00003.parquet"),
    ]


# --- labels


@pytest.fixture
def labels(data: Path, tmp_path: Path) -> dict[str, str]:
    settings = {"data": {"processes": 1}, "captioning": {"backend": "annotations"}}
    config = parse({**settings, "grounding": {"backend": "annotations", "phrases": "alt_text_ngrams"}}, source="test")
    roots = {"captions": str(tmp_path / "captions"), "regions": str(tmp_path / "regions")}
    captioning.run(
        config,
        inputs=captioning.Inputs(data=str(data)),
        outputs=captioning.Outputs(captions=roots["captions"]),
    )
    grounding.run(
        config,
        inputs=grounding.Inputs(data=str(data), captions=roots["captions"]),
        outputs=grounding.Outputs(regions=roots["regions"]),
    )
    return roots


def test_labels_belong_to_their_shards(data: Path, labels: dict[str, str]) -> None:
    report = check(data, tables=labels)
    assert report.ok, report.differences
    assert report.tables == {"captions": 2 * SHARDS, "regions": 2 * SHARDS}
    assert report.unknown == {"captions": SHARDS, "regions": SHARDS}, "those of the labelling stages say it"


def test_labels_of_other_captions_or_shards_are_named(data: Path, labels: dict[str, str]) -> None:
    captions, regions = Path(labels["captions"]), Path(labels["regions"])
    tables.write_table(FolderStorage(captions), "captions", "00001", [])
    shutil.copy(regions / "regions/00000.parquet", regions / "regions/00002.parquet")
    (captions / "captions/00000.parquet").unlink()
    (regions / "regions/strange.parquet").touch()
    # Without --tables nobody asked.
    assert check(data).ok
    report = check(data, tables=labels)
    assert sorted(differences(report)) == [
        (Kind.EXTRA, f"{regions}/regions/strange.parquet"),
        (Kind.MISSING, f"{captions}/captions/00000.parquet"),
        (Kind.TABLE, f"{regions}/regions/00000.parquet"),
        (Kind.TABLE, f"{regions}/regions/00001.parquet"),
        (Kind.TABLE, f"{regions}/regions/00002.parquet"),
    ]


# --- the command


def cloc(*arguments: str, monkeypatch: pytest.MonkeyPatch, verb: str = "verify") -> Any:
    monkeypatch.setattr("sys.argv", ["cloc", "data", verb, *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def test_exit_codes_and_the_last_line(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cloc(str(data), monkeypatch=monkeypatch) == 0
    assert "all equal" in capsys.readouterr().out.splitlines()[-1]
    flip(data / "images/00001.tar", 700)
    os.truncate(data / "images/00002.tar", 5000)
    assert cloc(str(data), monkeypatch=monkeypatch) == 3
    printed = capsys.readouterr()
    (summary,) = printed.err.splitlines()
    assert summary.startswith("error: ")
    assert summary.endswith(f"2 differences from {data}/manifest.json (1 sha256, 1 size)")
    assert [line.split()[:2] for line in printed.out.splitlines()[:2]] == [
        ["sha256", "images/00001.tar:"],
        ["size", "images/00002.tar:"],
    ]
    assert cloc(str(data), "--json", monkeypatch=monkeypatch) == 3
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert report["ways"] == {"read": 1}
    assert [item["path"] for item in report["differences"]] == ["images/00001.tar", "images/00002.tar"]
    for wrong in (
        ["--sizes-only", "--sample", "1"],
        ["--sizes-only", "--fresh"],
        ["--no-tables", "--tables", "captions=x"],
        ["--tables", "captions"],
        ["--tables", "boxes=x"],
        ["--threads", "0"],
    ):
        assert cloc(str(data), *wrong, monkeypatch=monkeypatch) == 2
        assert len(capsys.readouterr().err.splitlines()) <= 4


def test_a_digest_changes_with_the_labels_and_not_otherwise(
    data: Path,
    labels: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "work/captions.json"
    command = [str(data), "--tables", f"captions={labels['captions']}", "--out", str(out)]

    def digest() -> str:
        assert cloc(*command, verb="digest", monkeypatch=monkeypatch) == 0
        return out.read_text()

    before = digest()
    assert digest() == before
    assert json.loads(before)["captions"]["shards"] == json.loads(before)["data"]["shards"] == SHARDS
    storage = FolderStorage(labels["captions"])
    tables.write_table(storage, "captions", "00001", [])
    assert digest() != before
    storage.delete("captions/00001.parquet")
    capsys.readouterr()
    assert cloc(*command, verb="digest", monkeypatch=monkeypatch) == 3
    assert f"2 of {SHARDS} shards of {data} have captions" in capsys.readouterr().err


def test_many_differences_are_cut_for_people_and_whole_for_scripts(data: Path) -> None:
    for number in range(30):
        (data / f"stray{number:02d}").touch()
    report = check(data, hashed=0)
    lines = list(report.lines())
    assert sum(line.startswith("extra ") for line in lines) == 21
    assert "extra      and 10 more: --json names all" in lines
    assert len(report.to_json()["differences"]) == 30


def test_what_it_is_held_against_is_a_manifest(data: Path) -> None:
    with pytest.raises(DataError, match="not a manifest of a data set"):
        check(data, against=str(data / "captions/00000.parquet"))
    assert isinstance(Manifest.from_json((data / MANIFEST).read_text(), source="x"), Manifest)
