"""Ingest of tars as they are: what img2dataset wrote comes back whole; what is hostile is left out, and told."""

import hashlib
import io
import json
import os
import struct
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from cloc.config import Config, parse
from cloc.data import tables
from cloc.data.dataset import Dataset
from cloc.data.foreign import read_groups
from cloc.data.ingest import tars
from cloc.data.ingest.admit import Limits
from cloc.data.ingest.parts import Tar
from cloc.data.ingest.stage import Inputs, Outputs, run
from cloc.data.loader import LoaderSettings, TrainLoader
from cloc.data.storage import FolderStorage
from cloc.errors import DataError
from cloc.stage import StageResult


def jpeg(seed: int, size: tuple[int, int] = (60, 40)) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).save(sink, "JPEG")
    return sink.getvalue()


@dataclass(frozen=True)
class Member:
    """A member of a tar that is made by hand."""

    name: str
    body: bytes = b""
    kind: bytes = tarfile.REGTYPE
    link: str = ""


def write_tar(path: Path, members: Iterable[Member], *, format_: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format_, encoding="utf-8", errors="surrogateescape") as tar:
        for member in members:
            info = tarfile.TarInfo(member.name)
            info.type, info.linkname = member.kind, member.link
            info.size = len(member.body) if member.kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(member.body))
    return path


def sample(key: str, seed: int, **meta: Any) -> list[Member]:
    """A sample as img2dataset writes it."""
    body: dict[str, Any] = {
        "caption": f"caption of {key}",
        "url": f"https://example.org/{key}.jpg",
        "key": key.rpartition("/")[2],
        "status": "success",
        "error_message": None,
        "width": 60,
        "height": 40,
        "original_width": 600,
        "original_height": 400,
        "exif": "{}",
        "sha256": hashlib.sha256(key.encode()).hexdigest(),
        **meta,
    }
    return [
        Member(f"{key}.jpg", jpeg(seed)),
        Member(f"{key}.json", json.dumps(body, indent=4).encode()),
        Member(f"{key}.txt", str(body["caption"]).encode(errors="surrogatepass")),
    ]


def img2dataset(folder: Path, *, shards: int = 3, samples: int = 4) -> Path:
    """What img2dataset leaves: tars named by number, their statistics and tables beside them."""
    for shard in range(shards):
        keys = [f"{shard:05d}{index:04d}" for index in range(samples)]
        members = [member for index, key in enumerate(keys) for member in sample(key, shard * samples + index)]
        write_tar(folder / f"{shard:05d}.tar", members)
        stats = {"count": samples, "successes": samples, "status_dict": {"success": samples}}
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps(stats))
        pq.write_table(pa.table({"key": keys, "status": ["success"] * samples}), folder / f"{shard:05d}.parquet")
    return folder


def settings(**data: Any) -> Config:
    return parse({"data": {"processes": 1, "quarantine_limit": 0.9, **data}}, source="test")


def ingest(tmp_path: Path, where: Path, config: Config | None = None, output: str = "out") -> StageResult:
    inputs, outputs = Inputs(source="tars", tars=str(where)), Outputs(data=str(tmp_path / output))
    return run(config or settings(), inputs=inputs, outputs=outputs)


def quarantine(tmp_path: Path, output: str = "out") -> list[tuple[str, str]]:
    """Key and reason of all quarantine tables."""
    storage, rows = FolderStorage(tmp_path / output), list[dict[str, Any]]()
    for path in storage.list("quarantine"):
        rows += tables.read_table(storage, "quarantine", Path(path).stem).to_pylist()
    assert {row["stage"] for row in rows} <= {"ingest"}
    return [(row["key"], row["reason"]) for row in rows]


def keys(tmp_path: Path, output: str = "out") -> list[str]:
    """Keys that the data set gives, by every way of reading it."""
    dataset = Dataset.open(tmp_path / output)
    found = [item.key for shard in dataset.manifest.shards for item in dataset.read_samples(shard)]
    streamed = []
    for shard in dataset.manifest.shards:
        images = dataset.open_images(shard)
        streamed += [key for key, _ in images.read(lambda key: True)]
        images.close()
        dataset.check(shard)
    table = [tables.read_table(dataset.images, "fingerprints", shard.name) for shard in dataset.manifest.shards]
    fingerprints = [key for rows in table for key in rows["key"].to_pylist()]
    assert found == streamed == fingerprints
    assert len(found) == dataset.manifest.images
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- what img2dataset wrote


def test_img2dataset_tars_are_taken_without_a_copy(tmp_path: Path) -> None:
    folder = img2dataset(tmp_path / "in")
    before = files(folder)
    result = ingest(tmp_path, folder)
    assert (result.counts["images"], result.counts["captions"], result.counts["quarantined"]) == (12, 12, 0)
    assert files(folder) == before
    assert not list((tmp_path / "out").rglob("*.tar"))
    dataset = Dataset.open(tmp_path / "out")
    for index, shard in enumerate(dataset.manifest.shards):
        body = (folder / f"{index:05d}.tar").read_bytes()
        assert (shard.name, shard.path) == (f"{index:05d}", str(folder / f"{index:05d}.tar"))
        assert (shard.images, shard.bytes, shard.sha256) == (4, len(body), hashlib.sha256(body).hexdigest())
    assert keys(tmp_path) == [f"{shard:05d}{index:04d}" for shard in range(3) for index in range(4)]
    for number, item in enumerate(dataset.read_all()):
        key = item.sample.key
        assert item.sample.image == jpeg(number)
        assert item.captions == ({"key": key, "text": f"caption of {key}", "kind": "alt_text", "model": ""},)
        meta = item.sample.meta
        assert meta["alt_text"] == f"caption of {key}"
        assert (meta["source"], meta["width"], meta["height"]) == (f"https://example.org/{key}.jpg", 60, 40)
    rows = tables.read_table(dataset.images, "fingerprints", "00001").to_pylist()
    assert [row["sha256"] for row in rows] == [hashlib.sha256(jpeg(seed)).digest() for seed in range(4, 8)]


def test_the_loader_trains_on_them(tmp_path: Path) -> None:
    folder = img2dataset(tmp_path / "in")
    body = list(sample("000010001", 0))
    write_tar(folder / "00001.tar", [Member("000010001.jpg", b"no image"), *body[1:], *sample("000010002", 6)])
    ingest(tmp_path, folder)
    loader_settings = LoaderSettings(image_size=32, batch_size=3, max_regions=2, alt_text_share=1.0, seed=0)
    texts: list[str] = []

    def tokenize(batch: list[str]) -> torch.Tensor:
        texts.extend(text for text in batch if text)
        return torch.tensor([[len(text)] for text in batch])

    batches = TrainLoader(Dataset.open(tmp_path / "out"), loader_settings, tokenize=tokenize).batches()
    for _ in range(3):  # an epoch of 9 images
        assert next(batches).pixels_BSS3.shape == (3, 32, 32, 3)
    expected = {f"caption of 0000{shard}000{index}" for shard in (0, 2) for index in range(4)}
    assert expected | {"caption of 000010002"} == set(texts)


def test_one_tar_alone_and_a_folder_without(tmp_path: Path) -> None:
    folder = img2dataset(tmp_path / "in")
    assert ingest(tmp_path, folder / "00001.tar").counts["images"] == 4
    assert keys(tmp_path)[0] == "000010000"
    (tmp_path / "empty").mkdir()
    for where in (tmp_path / "empty", tmp_path / "nowhere", tmp_path / "no.tar"):
        with pytest.raises(DataError, match=r"^tars: there is no \.tar file at .*"):
            ingest(tmp_path, where)


def test_tars_in_a_relative_folder_are_found_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    img2dataset(tmp_path / "in", shards=1)
    monkeypatch.chdir(tmp_path)
    ingest(tmp_path, Path("in"))
    monkeypatch.chdir("/")
    assert len(keys(tmp_path)) == 4


def test_captions_from_json_or_text(tmp_path: Path) -> None:
    members = [
        *sample("a", 0)[:2],
        Member("b.jpeg", jpeg(1)),
        Member("b.txt", b"from a  text\n"),
        Member("c.JPG", jpeg(2)),
        Member("c.txt", b"\xff\xfe\xff"),
        *sample("d", 3, caption=None)[:2],
        Member("e.jpg", jpeg(4)),
        Member("e.txt", b"x" * 5000),
        Member("f.jpg", jpeg(5)),
        Member("f.txt", b"", tarfile.SYMTYPE, "/etc/passwd"),
    ]
    result = ingest(tmp_path, write_tar(tmp_path / "in.tar", members), settings(max_text_bytes=2000))
    dataset = Dataset.open(tmp_path / "out")
    found = {item.sample.key: [row["text"] for row in item.captions] for item in dataset.read_all()}
    assert found == {"a": ["caption of a"], "b": ["from a text"], "c": [], "d": [], "e": [], "f": []}
    assert result.counts["quarantined_captions"] == 3
    assert quarantine(tmp_path) == [
        ("c", "caption: its .txt is not UTF-8"),
        ("e", "caption: its .txt has 5000 bytes, at most 2000 are read"),
        ("f", "caption: its .txt is a symbolic link"),
    ]


def test_grit_boxes_and_contract_keys(tmp_path: Path) -> None:
    chunks = [[0, 7, 0.1, 0.2, 0.5, 0.9, 0.8]]
    body = {"noun_chunks": chunks, "ref_exps": [[0, 99, 0, 0, 1, 1, 0.9]], "license": "CC0"}
    result = ingest(tmp_path, write_tar(tmp_path / "in.tar", sample("a", 0, **body)))
    (item,) = Dataset.open(tmp_path / "out").read_all()
    assert [(row["text"], round(row["x2"], 4), round(row["score"], 4), row["source"]) for row in item.regions] == [
        ("caption", 0.5, 0.8, "grit")
    ]
    assert item.sample.meta["licence"] == "CC0"
    assert result.counts["quarantined_boxes"] == 1


def test_tars_of_a_data_set_can_be_taken_as_they_are(tmp_path: Path, make_dataset: Callable[..., str]) -> None:
    made = make_dataset(tmp_path / "made", 8, shard_size=4)
    assert ingest(tmp_path, tmp_path / "made/images").counts["images"] == 8
    for old, new in zip(Dataset.open(made).read_all(), Dataset.open(tmp_path / "out").read_all(), strict=True):
        assert new.sample == old.sample
        assert [row["text"] for row in new.captions] == [old.sample.meta["alt_text"]]


def test_names_in_folders_and_in_other_scripts(tmp_path: Path) -> None:
    members = [
        *sample("./sub/a", 0),
        *sample("sub/b.x", 1),
        *sample("größe", 2),
        Member("caf\udce9.png", _png(3)),
        Member("sub/", kind=tarfile.DIRTYPE),
        *sample("k" * 99, 4),
    ]
    ingest(tmp_path, write_tar(tmp_path / "in.tar", members))
    found = keys(tmp_path)
    assert found[0] == "sub_a"
    assert found[1].startswith("gr__e-")
    assert found[2].startswith("caf_-")
    assert found[3].startswith("kkk")
    assert len(found[3]) == 95
    assert quarantine(tmp_path) == [
        ("sub_b", "image: there is no jpg, png or webp among its files (.x.jpg, .x.json, .x.txt)")
    ]


def test_suffix_is_by_content(tmp_path: Path) -> None:
    ingest(tmp_path, write_tar(tmp_path / "in.tar", [Member("a.jpg", _png(0)), Member("b.png", jpeg(1))]))
    assert [item.sample.suffix for item in Dataset.open(tmp_path / "out").read_all()] == ["png", "jpg"]


# --- samples that are left out


def _png(seed: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def _bomb() -> bytes:
    """A PNG of 50,000 x 50,000 pixels in a few kilobytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(4_000_000), 9))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


HOSTILE: dict[str, tuple[list[Member], str]] = {
    "parent": ([Member("../x.jpg", jpeg(1))], "its name points outside the tar"),
    "inner parent": ([Member("a/../../x.jpg", jpeg(1))], "its name points outside the tar"),
    "absolute": ([Member("/etc/x.jpg", jpeg(1))], "its name points outside the tar"),
    "hidden": ([Member(".x.jpg", jpeg(1))], "its name has nothing before the dot"),
    "10 kB": ([Member("x" * 10_000 + ".jpg", jpeg(1))], "its name has 10004 characters, at most 1024 are taken"),
    "symbolic link": ([Member("x.jpg", b"", tarfile.SYMTYPE, "/etc/passwd")], "its .jpg is a symbolic link"),
    "hard link": ([Member("x.jpg", b"", tarfile.LNKTYPE, "../../secret")], "its .jpg is a hard link"),
    "device": ([Member("x.jpg", b"", tarfile.CHRTYPE)], "its .jpg is a device"),
    "pipe": ([Member("x.jpg", b"", tarfile.FIFOTYPE)], "its .jpg is a pipe"),
    "link for json": (
        [Member("x.jpg", jpeg(1)), Member("x.json", b"", tarfile.SYMTYPE, "/etc/passwd")],
        "its .json is a symbolic link",
    ),
    "key twice": ([*sample("x", 1), *sample("y", 2), *sample("x", 3)], "its key stands twice in the tar"),
    "file twice": ([Member("x.jpg", jpeg(1)), Member("x.jpg", jpeg(2))], "it has two files .jpg"),
    "one key": ([Member("a/x.jpg", jpeg(1)), Member("y.jpg", jpeg(2)), Member("a_x.jpg", jpeg(3))], "its key stands"),
    "out of order": (
        [Member("x.jpg", jpeg(1)), Member("y.jpg", jpeg(2)), Member("x.json", b"{}")],
        "its files are no neighbours in the tar",
    ),
    "json first": (
        [Member("x.json", b"{}"), Member("y.jpg", jpeg(2)), Member("x.jpg", jpeg(1))],
        "its files are no neighbours in the tar",
    ),
    "broken json": ([Member("x.jpg", jpeg(1)), Member("x.json", b'{"caption": ')], "its JSON is broken"),
    "list as json": ([Member("x.jpg", jpeg(1)), Member("x.json", b"[1]")], "its JSON is broken"),
    "deep json": ([Member("x.jpg", jpeg(1)), Member("x.json", b"[" * 100_000)], "its JSON is broken"),
    "json of other bytes": ([Member("x.jpg", jpeg(1)), Member("x.json", b'{"caption": "\xff"}')], "its JSON is broken"),
    "large json": (
        [Member("x.jpg", jpeg(1)), Member("x.json", b" " * 2_000_000)],
        "its .json has 2000000 bytes, at most 1048576 are read",
    ),
    "no image": ([Member("x.txt", b"text"), Member("x.json", b"{}")], "there is no jpg, png or webp among its files"),
    "gif": ([Member("x.gif", b"GIF89a")], "there is no jpg, png or webp among its files (.gif)"),
    "bomb": ([Member("x.png", _bomb())], "too many pixels"),
    "truncated image": ([Member("x.jpg", jpeg(1)[:500])], "cannot be decoded"),
    "empty image": ([Member("x.jpg", b"")], "empty file"),
    "tiny image": ([Member("x.jpg", jpeg(1, (8, 8)))], "too small (8x8"),
}


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_sample_is_left_out(tmp_path: Path, name: str, format_: int) -> None:
    members, reason = HOSTILE[name]
    source = write_tar(tmp_path / "in/00000.tar", [*sample("good", 0), *members, *sample("last", 9)], format_=format_)
    outside = files(tmp_path)
    result = ingest(tmp_path, source)
    assert {"good", "last"} <= set(keys(tmp_path)) <= {"good", "last", "y"}
    assert result.counts["quarantined"] == 1
    ((_, found),) = quarantine(tmp_path)
    assert found.startswith(f"image: {reason}")
    inside = {path: body for path, body in files(tmp_path).items() if not path.startswith("out/")}
    assert inside == outside, "something was written outside the output"
    assert all(path.is_file() and not path.is_symlink() for path in (tmp_path / "out").rglob("*.*"))


def test_surrogates_in_json_reach_no_table(tmp_path: Path) -> None:
    meta = {"caption": "a \ud800 b", "url": "http://\ud800", "noun_chunks": [["\ud800"]]}
    result = ingest(tmp_path, write_tar(tmp_path / "in.tar", sample("a", 0, **meta)[:2]))
    assert (result.counts["images"], result.counts["quarantined_captions"]) == (1, 1)
    (item,) = Dataset.open(tmp_path / "out").read_all()
    assert (item.sample.meta["alt_text"], item.sample.meta["source"]) == ("", "http://\\ud800")


def test_sparse_files_are_not_blown_up(tmp_path: Path) -> None:
    """A GNU sparse file of 1 TB whose tar holds one block of it."""
    header = bytearray(tarfile.TarInfo("x.jpg").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[124:136] = b"%011o\0" % 512
    header[386:398], header[398:410] = b"%011o\0" % 0, b"%011o\0" % 512
    header[482] = 1  # a block of more pieces follows
    header[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")
    _seal(header)
    body = bytes(header) + bytes(512) + b"y" * 512
    _splice(tmp_path / "in.tar", body)
    assert keys_of_ingest(tmp_path) == ["good", "last"]
    assert quarantine(tmp_path) == [("x", "image: its .jpg is a sparse file ('x')")]


def test_sparse_files_by_extended_headers(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x.jpg")
    info.size = 10
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 40)}
    _splice(tmp_path / "in.tar", info.tobuf(tarfile.PAX_FORMAT) + bytes(512))
    assert keys_of_ingest(tmp_path) == ["good", "last"]
    assert quarantine(tmp_path) == [("x", "image: its .jpg is a sparse file ('x')")]


def _seal(header: bytearray) -> None:
    """Puts the right checksum into a header."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)


def _splice(path: Path, body: bytes) -> None:
    """A tar with raw blocks between two good samples."""
    first = write_tar(path.with_suffix(".first"), sample("good", 0))
    last = write_tar(path.with_suffix(".last"), sample("last", 1))
    path.write_bytes(_members(first) + body + last.read_bytes())


def _members(path: Path) -> bytes:
    with tarfile.open(path) as tar:
        tar.getmembers()
        return path.read_bytes()[: tar.offset]


def keys_of_ingest(tmp_path: Path) -> list[str]:
    ingest(tmp_path, tmp_path / "in.tar")
    return keys(tmp_path)


# --- tars that are left out whole


def _raw(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """A header whose size field is these 12 bytes."""
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    header[124:136], header[156:157] = size, kind
    _seal(header)
    return bytes(header)


def _huge(value: int) -> bytes:
    return b"\x80" + value.to_bytes(11, "big")


END = bytes(1024)


class Broken:
    """Tars that cannot be read to their end: bytes behind a good sample, and the reason."""

    CASES: ClassVar[Mapping[str, tuple[bytes, str]]] = {
        "4 GB": (_raw("x.jpg", _huge(4 << 30)) + bytes(1024), "truncated"),
        "4 GB, octal": (_raw("x.jpg", b"40000000000\0") + bytes(1024), "truncated"),
        "beyond any file": (_raw("x.jpg", _huge(1 << 80)) + bytes(1024), "number b'\\x80"),
        "negative": (_raw("x.jpg", b"\xff" * 12) + bytes(1024), "number b'\\xff"),
        "no number": (_raw("x.jpg", b"not a number") + bytes(1024), "number b'not a number'"),
        "long name of 1 GB": (_raw("L", _huge(1 << 30), b"L") + bytes(1024), "an extended header of 1073741824 bytes"),
        "pax of 1 GB": (_raw("x", _huge(1 << 30), b"x") + bytes(1024), "an extended header of 1073741824 bytes"),
        "pax size": (
            _raw("x", b"00000000022\0", b"x")
            + b"18 size=999999999\n".ljust(512, b"\0")
            + _raw("x.jpg", b"00000000001\0")
            + END,
            "truncated",
        ),
        "pax size of 40 digits": (
            _raw("x", b"00000000063\0", b"x") + (b"51 size=" + b"9" * 42 + b"\n").ljust(512, b"\0") + END,
            "a size of '9999",
        ),
        "no end": (b"", "truncated"),
        "wrong checksum": (
            _raw("x.jpg", b"00000000000\0").replace(b"x.jpg", b"y.jpg") + END,
            "a header's checksum is wrong",
        ),
        "two tars": (END + _raw("x.jpg", b"00000000000\0") + END, "more data behind its end-of-archive mark"),
    }


@pytest.mark.parametrize("name", Broken.CASES)
def test_broken_tar_is_left_out_whole(tmp_path: Path, name: str) -> None:
    tail, reason = Broken.CASES[name]
    folder = img2dataset(tmp_path / "in", shards=2)
    first = write_tar(tmp_path / "first.tar", sample("good", 0))
    (folder / "00001.tar").write_bytes(_members(first) + tail)
    tracemalloc.start()
    result = ingest(tmp_path, folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 << 20
    assert (result.counts["images"], result.counts["quarantined"], result.counts["quarantined_tars"]) == (4, 1, 1)
    ((key, found),) = quarantine(tmp_path)
    assert key == str(folder / "00001.tar")
    assert found.startswith("tar: ")
    assert reason in found
    assert len(keys(tmp_path)) == 4
    assert not (tmp_path / "out/captions/00001.parquet").exists()
    with pytest.raises(
        DataError, match=r"1 of 2 tars \(50\.0%\) had to be quarantined.*first: .*/in/00001\.tar: "
    ) as e:
        ingest(tmp_path, folder, settings(quarantine_limit=0.4))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "empty file"),
        (bytes(10240), "a tar without samples"),
        (b"\x1f\x8b\x08\0" + bytes(600), r"compressed \(gzip\)"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), r"compressed \(zstd\)"),
        (b"PK\x03\x04" + bytes(600), r"compressed \(zip\)"),
        (b"<html>" * 100, "not a tar, or damaged"),
    ],
)
def test_file_that_is_no_tar_is_one_line(tmp_path: Path, body: bytes, reason: str) -> None:
    (tmp_path / "in.tar").write_bytes(body)
    with pytest.raises(DataError, match=rf"^ingest: 1 of 1 tars .*/in\.tar: tar: {reason}[^\n]*$"):
        ingest(tmp_path, tmp_path / "in.tar")


def test_truncated_anywhere(tmp_path: Path) -> None:
    body = write_tar(tmp_path / "whole.tar", [*sample("a", 0), *sample("b", 1)]).read_bytes()
    end = len(body.rstrip(b"\0"))
    limits = Limits(min_side=1, max_pixels=10_000, max_text_bytes=10_000, near_duplicate_bits=0)
    for cut in range(1, end + 1, 331):
        (tmp_path / "in.tar").write_bytes(body[:cut])
        task = tars.TarTask(Tar("00000", str(tmp_path / "in.tar")), str(tmp_path / "out"), limits)
        report = task.make()
        assert report.shard is None
        assert report.counts["quarantined_tars"] == 1
        assert "truncated" in report.example


def test_json_of_100_mb_takes_no_memory(tmp_path: Path) -> None:
    members = [*sample("good", 0), Member("x.jpg", jpeg(1)), Member("x.json", b'"' + b"x" * (100 << 20) + b'"')]
    source = write_tar(tmp_path / "in.tar", members)
    del members
    tracemalloc.start()
    ingest(tmp_path, source)
    assert keys(tmp_path) == ["good"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 << 20, f"{peak} bytes were held"
    assert quarantine(tmp_path)[0][1].startswith("image: its .json has 104857602 bytes")


def test_image_of_300_mb_takes_no_memory(tmp_path: Path) -> None:
    """A member whose length is true, in a file with a hole for its body."""
    first, last = write_tar(tmp_path / "first.tar", sample("good", 0)), write_tar(tmp_path / "last.tar", sample("x", 1))
    with (tmp_path / "in.tar").open("wb") as stream:
        stream.write(_members(first) + _raw("y.jpg", _huge(300 << 20)))
        stream.seek(300 << 20, os.SEEK_CUR)
        stream.write(last.read_bytes())
    tracemalloc.start()
    ingest(tmp_path, tmp_path / "in.tar")
    assert keys(tmp_path) == ["good", "x"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 << 20, f"{peak} bytes were held"
    assert quarantine(tmp_path) == [("y", "image: its .jpg has 314572800 bytes, at most 268435456 are read ('y')")]


def test_too_many_samples_or_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = img2dataset(tmp_path / "in", shards=1)
    for name, value in (("_MAX_SAMPLES", 3), ("_MAX_TEXTS", 1000)):
        with monkeypatch.context() as patch:
            patch.setattr(tars, name, value)
            with pytest.raises(DataError, match=r"more than .* samples or .* of texts, which one shard cannot hold"):
                ingest(tmp_path, folder)


# --- runs and reruns


def test_rerun_skips_and_changes_are_noticed(tmp_path: Path) -> None:
    folder = img2dataset(tmp_path / "in")
    ingest(tmp_path, folder)
    before = files(tmp_path / "out")
    assert ingest(tmp_path, folder).counts["skipped_shards"] == 3
    assert files(tmp_path / "out") == before
    state = (folder / "00001.tar").stat()
    changed = bytearray((folder / "00001.tar").read_bytes())
    place = changed.index(b"caption of 000010002")
    changed[place : place + 7] = b"CAPTION"
    (folder / "00001.tar").write_bytes(changed)
    os.utime(folder / "00001.tar", ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert ingest(tmp_path, folder).counts["skipped_shards"] == 2
    texts = [row["text"] for item in Dataset.open(tmp_path / "out").read_all() for row in item.captions]
    assert texts[6] == "CAPTION of 000010002"
    assert ingest(tmp_path, folder, settings(min_side=30)).counts["skipped_shards"] == 0


def test_other_limits_make_another_data_set(tmp_path: Path) -> None:
    """Tables made from a tar must not pass for current when other samples of the same tar are left out."""
    members = [*sample("a", 0), Member("b.jpg", jpeg(1, (30, 30))), Member("c.jpg", jpeg(2, (20, 20)))]
    source = write_tar(tmp_path / "in.tar", members)
    digests = set()
    for side in (16, 25, 35):
        ingest(tmp_path, source, settings(min_side=side))
        dataset = Dataset.open(tmp_path / "out")
        assert dataset.manifest.images == {16: 3, 25: 2, 35: 1}[side]
        digests.add(dataset.digest)
    assert len(digests) == 3


def test_processes_make_no_difference(tmp_path: Path) -> None:
    folder = img2dataset(tmp_path / "in", shards=5)
    (folder / "00003.tar").write_bytes(b"")
    for processes in (1, 2):
        ingest(tmp_path, folder, settings(processes=processes), output=f"out{processes}")
    assert files(tmp_path / "out1") == files(tmp_path / "out2")


def test_fewer_tars_or_another_source_leave_nothing_behind(tmp_path: Path) -> None:
    folder = img2dataset(tmp_path / "in")
    images = tmp_path / "images"
    images.mkdir()
    for index in range(6):
        (images / f"p{index}.jpg").write_bytes(jpeg(index))
    config = settings(images_per_shard=1)
    run(config, inputs=Inputs(images=str(images)), outputs=Outputs(data=str(tmp_path / "out")))
    (tmp_path / "out/stats/00005.json").unlink()  # as if it had been killed before the record
    ingest(tmp_path, folder)
    ingest(tmp_path, folder, output="fresh")
    assert files(tmp_path / "out") == files(tmp_path / "fresh")
    (folder / "00002.tar").unlink()
    ingest(tmp_path, folder)
    assert not [path for path in files(tmp_path / "out") if "00002" in path]


def test_equal_keys_in_two_tars_are_both_named(tmp_path: Path) -> None:
    img2dataset(tmp_path / "in/a", shards=1)
    img2dataset(tmp_path / "in/b", shards=2)
    with pytest.raises(DataError) as caught:
        ingest(tmp_path, tmp_path / "in")
    text = str(caught.value)
    assert "\n" not in text
    assert "in shard 00000 (" in text
    assert f"{tmp_path}/in/a/00000.tar) and in shard 00001 ({tmp_path}/in/b/00000.tar)" in text
    assert not (tmp_path / "out/manifest.json").exists()


def test_reasons_are_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [Member(f"x{index}.jpg", b"no image") for index in range(3)]
    tiny = [Member(f"t{side}.jpg", jpeg(1, (side, side))) for side in (8, 9)]
    ingest(tmp_path, write_tar(tmp_path / "in.tar", [*sample("a", 0), *bad, *tiny]))
    lines = capsys.readouterr().out.splitlines()
    assert "ingest: quarantined: 3 x image: not an image; 2 x image: too small" in lines


def test_tar_that_changed_since_is_told(tmp_path: Path) -> None:
    folder = img2dataset(tmp_path / "in", shards=1)
    ingest(tmp_path, folder)
    write_tar(folder / "00000.tar", [*sample("a", 0), Member("b.jpg", b"", tarfile.SYMTYPE, "a.jpg")])
    dataset = Dataset.open(tmp_path / "out")
    with pytest.raises(DataError, match=r"in/00000\.tar: sample 'b' cannot be used .*run the ingest again"):
        list(dataset.read_all())
    write_tar(folder / "00000.tar", sample("a", 0))
    with pytest.raises(DataError, match=r"in/00000\.tar: 1 samples, the manifest says 4"):
        list(dataset.read_all())
    (folder / "00000.tar").unlink()
    with pytest.raises(DataError, match=r"there is no 00000\.tar"):
        list(dataset.read_all())


def test_groups_are_streamed(tmp_path: Path) -> None:
    """A reader that stops early has read no more than it was given."""
    source = write_tar(tmp_path / "in.tar", [member for index in range(50) for member in sample(f"k{index}", index)])
    with source.open("rb") as stream:
        groups = read_groups(stream, source="x")
        assert [next(groups).key for _ in range(3)] == ["k0", "k1", "k2"]
        assert stream.tell() < 40_000
