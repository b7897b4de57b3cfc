"""Reader: WebDataset tars as img2dataset leaves them, taken as they are. Nothing is copied: the tar is the shard.

Each tar is read once, as a stream: that gives its hash, its texts and boxes, and a check of every image. What cannot be
used stands in the quarantine table and is left out by whoever reads the data set; a tar that cannot be read to its end
is left out whole.
"""

import dataclasses
import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from cloc.data.foreign import Group, parse_meta, read_groups, text_of
from cloc.data.ingest.admit import Limits, Rows, admit
from cloc.data.ingest.finished import ShardReport, begin_shard, find_shard, finish_shard
from cloc.data.ingest.grit import labels_of_json
from cloc.data.ingest.parts import Refusal, Source, Tar
from cloc.data.ingest.records import Record
from cloc.data.schema import LEFT_OUT, LEFT_OUT_TAR, Shard
from cloc.data.storage import open_storage
from cloc.data.tar import BrokenTarError
from cloc.data.texts import printable
from cloc.errors import DataError
from cloc.stage import fingerprint

# Raise it when the same tars give other tables than before, so that old ones are made again.
_VERSION = 1
_BUFFER = 1 << 20
# What a shard's tables hold comes from its samples' texts: with these, they stay in memory.
_MAX_SAMPLES = 1_000_000
_MAX_TEXTS = 512 << 20
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


def read_tars(path: str) -> Source:
    """Opens tars.

    Args:
        path: folder or `s3://` prefix of `.tar` files, in the order of their paths; or one tar.

    Raises:
        DataError: there is none.
    """
    where = path.removeprefix("file://").rstrip("/")
    where = where if "://" in where else os.path.abspath(where or "/")
    if where.endswith(".tar") and not Path(where).is_dir():
        folder, _, name = where.rpartition("/")
        names = [name] if open_storage(folder or "/").exists(name) else []
    else:
        folder = where
        names = [name for name in open_storage(folder).walk("") if name.endswith(".tar")]
    if not names:
        raise DataError(f"tars: there is no .tar file at {path}")
    tars = tuple(Tar(name=f"{index:05d}", url=f"{folder}/{name}") for index, name in enumerate(names))
    return Source(kind="tars", tars=tars)


@dataclass(frozen=True)
class TarTask:
    """What a worker needs to take a tar as it is.

    Attributes:
        tar: where it lies and what its shard is called.
        output: URL of the data set.
        limits: what its images and texts must be like.
    """

    tar: Tar
    output: str
    limits: Limits

    def make(self, *, tick: Callable[[int], None] | None = None) -> ShardReport:
        """Reads the tar and writes the shard's tables, or finds them written.

        Args:
            tick: called with the number of samples done, after each.

        Raises:
            DataError: the tar is gone, cannot be fetched, or changes while it is read.
        """
        storage, url = open_storage(self.output), self.tar.url
        folder, _, name = url.rpartition("/")
        tars = open_storage(folder or "/")
        version = tars.version(name)
        source_hash = fingerprint(_VERSION, dataclasses.astuple(self.limits), url, version)
        finished = find_shard(storage, self.tar.name, source_hash)
        if finished is not None:
            return finished
        begin_shard(storage, self.tar.name)
        reading, entry = _Reading(self), None
        try:
            with tars.open(name) as stream:
                entry = reading.read(stream, tick=tick)
        except BrokenTarError as error:
            reading.give_up(error.reason)
        except OSError as error:
            raise DataError(f"{url}: cannot be read ({error.strerror or error})") from None
        if tars.version(name) != version:
            raise DataError(f"{url}: the tar changed while it was read; run the same command again when it is finished")
        return finish_shard(storage, self.tar.name, entry, reading.rows, source_hash=source_hash)


class _Reading:
    """A tar on its way into tables."""

    def __init__(self, task: TarTask) -> None:
        self._task = task
        self.rows = Rows()
        self._names: dict[str, bool] = {}  # whether the sample had an image, by key
        self._unfit: dict[str, str] = {}  # why samples that came twice are left out
        self._texts = 0

    def read(self, stream: BinaryIO, *, tick: Callable[[int], None] | None) -> Shard | None:
        """Reads the tar to its end and returns its manifest entry, None without a usable image."""
        url, limits = self._task.tar.url, self._task.limits
        counted = _Counted(stream, url)
        buffered = cast(BinaryIO, io.BufferedReader(counted, _BUFFER))
        try:
            for done, group in enumerate(
                read_groups(buffered, source=url, max_text_bytes=limits.max_text_bytes), start=1
            ):
                self._take(group)
                if tick is not None:
                    tick(done)
        except BrokenTarError as error:
            raise BrokenTarError(url, counted.packed or error.reason) from None
        return self._entry(counted)

    def _take(self, group: Group) -> None:
        url, key = self._task.tar.url, group.key
        self._texts += sum(len(group.files.get(suffix, b"")) for suffix in ("json", "txt"))
        if len(self._names) >= _MAX_SAMPLES or self._texts > _MAX_TEXTS:
            raise BrokenTarError(
                url, f"more than {_MAX_SAMPLES} samples or {_MAX_TEXTS >> 20} MiB of texts, which one shard cannot hold"
            )
        if key in self._names:
            twice = self._names[key] and group.image is not None
            self._unfit[key] = "its key stands twice in the tar" if twice else "its files are no neighbours in the tar"
            return
        self._names[key] = group.image is not None
        record = _record(group)
        if isinstance(record, str):
            self.rows.refuse_image(key, record)
            return
        body: bytes | Refusal = group.image if group.image is not None else Refusal(_no_image(group))
        admit(record, body, rows=self.rows, limits=self._task.limits, reencode=False)

    def _entry(self, counted: "_Counted") -> Shard | None:
        rows, tar = self.rows, self._task.tar
        rows.retract(self._unfit.keys())
        for key, reason in self._unfit.items():
            rows.refuse_image(key, reason)
        if not rows.fingerprints:
            if not rows.quarantine:
                raise BrokenTarError(tar.url, "a tar without samples")
            return None
        left_out = sorted({row["key"] for row in rows.quarantine if row["reason"].startswith(LEFT_OUT)})
        return Shard(
            name=tar.name,
            path=tar.url,
            images=len(rows.fingerprints),
            bytes=counted.bytes,
            sha256=counted.sha256,
            left_out=fingerprint(left_out) if left_out else "",
        )

    def give_up(self, reason: str) -> None:
        """Quarantines the tar as a whole: nothing of it is part of the data set."""
        samples = max(1, len(self._names))
        self.rows = Rows(counts=Counter(quarantined=samples))
        self.rows.refuse(printable(self._task.tar.url), f"{LEFT_OUT_TAR}{reason}")


class _Counted(io.RawIOBase):
    """Passes a stream on, and hashes and counts what goes by."""

    def __init__(self, stream: BinaryIO, url: str) -> None:
        self._stream, self._url, self._hash = stream, url, hashlib.sha256()
        self._head = b""
        self.bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        body = self._stream.read(len(buffer))
        buffer[: len(body)] = body
        self._hash.update(body)
        self._head = self._head or body[:8]
        self.bytes += len(body)
        return len(body)

    @property
    def sha256(self) -> str:
        """Hash of all that went by."""
        return self._hash.hexdigest()

    @property
    def packed(self) -> str:
        """What is wrong with a file that is no tar by its first bytes, or ""."""
        if not self.bytes:
            return "empty file"
        kind = next((kind for start, kind in _PACKED.items() if self._head.startswith(start)), "")
        return f"compressed ({kind}), which is taken only unpacked" if kind else ""


def _record(group: Group) -> Record | str:
    """The labels of a sample, or why it cannot be used."""
    if group.problem:
        return f"{printable(group.problem)[:200]} ({printable(group.name)[:100]!r})"
    meta = parse_meta(group)
    if meta is None:
        return "its JSON is broken"
    labels, problems = labels_of_json(meta), []
    if group.text_problem or text_of(group) is None:
        problems.append(f"caption: {group.text_problem or 'its .txt is not UTF-8'}")
    return Record(
        key=group.key,
        name=f"{group.name}.{group.suffixes[0]}",
        alt_text=labels.alt_text or ((meta["alt_text"],) if meta["alt_text"] else ()),
        boxes=labels.boxes,
        source=meta["source"],
        licence=meta["licence"],
        problems=(*labels.problems, *problems),
    )


def _no_image(group: Group) -> str:
    found = ", ".join(f".{suffix}" for suffix in sorted(set(group.suffixes))[:5])
    return f"there is no jpg, png or webp among its files ({printable(found)[:100]})"
