"""What a source consists of: parts, each of which becomes one shard, or tars that are taken as they are."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cloc.data.ingest.records import Record, unique
from cloc.data.storage import relative_path
from cloc.errors import DataError
from cloc.stage import fingerprint


@dataclass(frozen=True)
class Refusal:
    """Why an image cannot be read, in a few words for the quarantine table."""

    reason: str


@dataclass(frozen=True)
class Item:
    """A record with the bytes of its image, or with the reason why there are none."""

    record: Record
    body: bytes | Refusal


class Part(Protocol):
    """The images of one shard, read in a worker process: a value that can be pickled."""

    def fingerprint(self) -> str:
        """Hash of everything that decides what `read` yields; cheap, without reading the images."""

    def read(self) -> Iterator[Item]:
        """The images with their labels, in a fixed order."""


@dataclass(frozen=True)
class FilePart:
    """Images that are files of a folder.

    Attributes:
        folder: where the files lie.
        records: the images, in order; their names are paths below the folder and not trusted to stay in it.
    """

    folder: str
    records: tuple[Record, ...]

    def fingerprint(self) -> str:
        return fingerprint([(dataclasses.astuple(record), self._state(record)) for record in self.records])

    def read(self) -> Iterator[Item]:
        for record in self.records:
            yield Item(record, self._load(record))

    def _state(self, record: Record) -> tuple[int, int] | None:
        try:
            state = (Path(self.folder) / relative_path(record.name, root=self.folder)).stat()
        except (DataError, OSError):
            return None  # becomes a quarantine row when the shard is made
        return state.st_size, state.st_mtime_ns

    def _load(self, record: Record) -> bytes | Refusal:
        try:
            return (Path(self.folder) / relative_path(record.name, root="its folder")).read_bytes()
        except DataError as error:
            return Refusal(str(error))
        except FileNotFoundError:
            return Refusal("the file is missing")
        except OSError as error:
            return Refusal(f"the file cannot be read ({error.strerror})")


@dataclass(frozen=True)
class Tar:
    """A WebDataset tar that is taken as it is.

    Attributes:
        name: the shard's name in the data set.
        url: absolute path or URL of the tar.
    """

    name: str
    url: str


@dataclass(frozen=True)
class Source:
    """An opened source.

    Attributes:
        kind: name of the reader.
        parts: its images in a fixed order, a part a shard; empty for a source of tars.
        tars: tars that are taken as they are.
        classes: the closed list of region classes, where there is one.
        details: what to note in the manifest; no absolute paths, no times.
    """

    kind: str
    parts: Iterable[Part] = ()
    tars: tuple[Tar, ...] = ()
    classes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardSize:
    """When a shard is full: so many images, or so many bytes of source images (0 sets no limit)."""

    images: int
    bytes: int


def file_parts(records: Iterable[Record], *, folder: Path, size: ShardSize) -> Iterator[FilePart]:
    """Cuts the records of a folder's files into shards. Raises DataError when two of them have one key."""
    chunk: list[Record] = []
    held = 0
    for record in unique(records):
        body = _file_size(folder, record.name)
        if chunk and (len(chunk) == size.images or (size.bytes and held + body > size.bytes)):
            yield FilePart(str(folder), tuple(chunk))
            chunk, held = [], 0
        chunk.append(record)
        held += body
    if chunk:
        yield FilePart(str(folder), tuple(chunk))


def _file_size(folder: Path, name: str) -> int:
    try:
        return (folder / relative_path(name, root=str(folder))).stat().st_size
    except (DataError, OSError):
        return 0  # becomes a quarantine row when the shard is made
