"""Hostile tars: what is wrong with them is left out, told and counted; nothing gets out, memory stays small."""

import os
import struct
import tarfile
import tracemalloc
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from cloc.data.dataset import Dataset
from cloc.data.ingest import tars
from cloc.data.ingest.admit import Limits
from cloc.data.ingest.parts import Tar
from cloc.errors import DataError
from tests.tar_sets import Member, files, img2dataset, ingest, jpeg, keys, quarantine, sample, settings, write_tar

# --- samples that are left out


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
