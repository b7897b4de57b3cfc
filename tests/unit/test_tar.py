"""The tar reader that skips: it reads what `tarfile` writes, and names what is broken."""

import io
import tarfile
from collections.abc import Callable

import pytest

from cloc.data.shards import Sample, ShardWriter, read_images
from cloc.data.storage import FolderStorage
from cloc.data.tar import TarStream
from cloc.errors import DataError

NAMES = ("a.json", "a.jpg", "b" * 95 + ".jpg", "k" * 60 + "/" + "c" * 60 + ".jpg", "é" * 80 + ".webp", "empty.png")


class Pipe(io.BytesIO):
    """A stream that cannot seek."""

    def seekable(self) -> bool:
        return False

    def seek(self, *place: int) -> int:
        raise io.UnsupportedOperation("seek")


def packed(files: dict[str, bytes], *, format_: int = tarfile.PAX_FORMAT, mtime: float = 1.5) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=format_) as tar:
        for name, body in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(body), mtime
            tar.addfile(member, io.BytesIO(body))
            link = tarfile.TarInfo(f"{name}.link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
    return sink.getvalue()


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("stream", [io.BytesIO, Pipe])
@pytest.mark.parametrize("every", [1, 2, 100])
def test_it_reads_what_tarfile_writes(format_: int, stream: Callable[[bytes], io.BytesIO], every: int) -> None:
    """Links are no files; long names, and times that are no integers, stand in headers of their own."""
    files = {name: f"{name} {'x' * 700 * number}".encode() for number, name in enumerate(NAMES)}
    files["empty.png"] = b""
    tar = TarStream(stream(packed(files, format_=format_)), source="t")
    found = {name: tar.read() if number % every == 0 else None for number, name in enumerate(tar)}
    assert list(found) == list(files)
    assert all(body is None or body == files[name] for name, body in found.items())


def test_the_tar_of_another_program(tmp_path) -> None:
    """With a prefix (USTAR) and a size in base 256."""
    member = tarfile.TarInfo("p" * 90 + "/" + "n" * 40 + ".jpg")
    member.size = 3
    header = bytearray(member.tobuf(format=tarfile.USTAR_FORMAT))
    header[124:136] = b"\x80" + (3).to_bytes(11)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    tar = TarStream(io.BytesIO(bytes(header) + b"abc" + bytes(509) + bytes(1024)), source="t")
    assert [(name, tar.read()) for name in tar] == [(member.name, b"abc")]


@pytest.mark.parametrize("cut", [0, 100, 512, 600, 1024 + 100, -1024])
@pytest.mark.parametrize("stream", [io.BytesIO, Pipe])
def test_a_truncated_tar_is_named(cut: int, stream: Callable[[bytes], io.BytesIO]) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("a.jpg", "b.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 700
            tar.addfile(member, io.BytesIO(bytes(700)))
    body = sink.getvalue()[: 2 * 1536 + cut if cut < 0 else cut]
    for read in (True, False):
        tar_stream = TarStream(stream(body), source="s3://b/x.tar")
        with pytest.raises(DataError, match=r"s3://b/x\.tar: truncated"):
            [tar_stream.read() for _ in tar_stream if read]


def test_hostile_headers_are_refused_and_reserve_no_memory() -> None:
    body = packed({"a.jpg": b"abc"}, format_=tarfile.USTAR_FORMAT, mtime=0)
    with pytest.raises(DataError, match="not a tar, or damaged"):
        list(TarStream(io.BytesIO(b"x" + body[1:]), source="t"))
    huge = bytearray(body)
    huge[124:136] = b"\x80" + (1 << 42).to_bytes(11)
    huge[148:156] = b" " * 8
    huge[148:156] = b"%06o\0 " % sum(huge[:512])
    tar = TarStream(io.BytesIO(bytes(huge)), source="t")
    with pytest.raises(DataError, match="truncated"):
        [tar.read() for _ in tar]
    extended = bytearray(huge)
    extended[156:157] = b"x"
    extended[148:156] = b" " * 8
    extended[148:156] = b"%06o\0 " % sum(extended[:512])
    with pytest.raises(DataError, match="an extended header of 4398046511104 bytes"):
        list(TarStream(io.BytesIO(bytes(extended)), source="t"))


def test_images_are_read_without_what_nobody_wants(tmp_path) -> None:
    writer = ShardWriter()
    for number in range(6):
        writer.add(Sample(key=f"k{number}", image=bytes([number]) * 70_000, suffix="png", meta={"alt_text": "x"}))
    writer.write(FolderStorage(tmp_path), "00000")
    asked: list[str] = []

    def want(key: str) -> bool:
        asked.append(key)
        return key in ("k1", "k5")

    class Counting(io.BytesIO):
        passed = 0

        def read(self, size: int | None = -1) -> bytes:
            body = super().read(size)
            Counting.passed += len(body)
            return body

    stream = Counting((tmp_path / "images" / "00000.tar").read_bytes())
    found = list(read_images(stream, source="t", want=want))
    assert found == [("k1", b"\1" * 70_000), ("k5", b"\5" * 70_000)]
    assert asked == [f"k{number}" for number in range(6)]
    assert Counting.passed < 160_000


def test_a_sample_without_an_image_or_with_a_bad_key_is_named() -> None:
    with pytest.raises(DataError, match="t: sample 'a' has no image"):
        list(read_images(io.BytesIO(packed({"a.json": b"{}"})), source="t", want=lambda key: True))
    with pytest.raises(DataError, match=r"t: member '\.\./x\.jpg' has no key"):
        list(read_images(io.BytesIO(packed({"../x.jpg": b"x"})), source="t", want=lambda key: True))
