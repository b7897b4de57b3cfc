"""Parts of a classification set, in chunks that are read one at a time: files in class folders, or WebDataset tars.

Opening a part reads it once: each chunk has the hash of its images, by which features are kept, and the class of each
of them, which is known without reading it again. A chunk is a value that can be pickled.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, Protocol, cast

import numpy as np
import numpy.typing as npt

from cloc.data.foreign import Group, read_groups
from cloc.data.storage import Storage, open_storage
from cloc.errors import DataError
from cloc.stage import fingerprint

CHUNK_IMAGES = 512
_READERS = 8  # files or tars that are hashed at once
_MAX_LABEL_BYTES = 1 << 20
_LABEL_KEYS = ("cls", "label")  # of a sample's JSON

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ClassImage:
    """An image: its key in the part, its encoded file, and the number of its class."""

    key: str
    body: bytes
    label: int


class Chunk(Protocol):
    """Some images of a part.

    Attributes:
        digest: hash of their keys and bytes, not of their classes.
        keys, labels: of each image, in order.
    """

    @property
    def digest(self) -> str: ...
    @property
    def keys(self) -> tuple[str, ...]: ...
    @property
    def labels(self) -> tuple[int, ...]: ...

    def read(self) -> Iterator[ClassImage]:
        """The images, streamed in order. Raises DataError when they are not those that were opened."""


@dataclass(frozen=True)
class FolderChunk:
    """Images that are files: `keys` are their paths below `url`."""

    url: str
    keys: tuple[str, ...]
    labels: tuple[int, ...]
    digest: str

    def read(self) -> Iterator[ClassImage]:
        storage = open_storage(self.url)
        for key, label in zip(self.keys, self.labels, strict=True):
            yield ClassImage(key, storage.read_bytes(key), label)


@dataclass(frozen=True)
class TarChunk:
    """The images of one tar: keys are its path below `url` and the sample's name in it."""

    url: str
    path: str
    keys: tuple[str, ...]
    labels: tuple[int, ...]
    digest: str

    def read(self) -> Iterator[ClassImage]:
        labels, found = dict(zip(self.keys, self.labels, strict=True)), 0
        with open_storage(self.url).open(self.path) as stream:
            for group in read_groups(stream, source=f"{self.url}/{self.path}", texts=False):
                key = _key(self.path, group)
                label = labels.pop(key, None)
                if label is not None and group.image is not None:
                    found += 1
                    yield ClassImage(key, group.image, label)
        if found != len(self.keys):
            raise DataError(f"{self.url}/{self.path}: {found} images, {len(self.keys)} when it was opened: it changed")


@dataclass(frozen=True)
class Part:
    """A part of a set.

    Attributes:
        name: "test", "val" or "train".
        chunks: its images.
        refused: (key, reason) of samples of tars that cannot be used: without image or class, with a hostile name.
    """

    name: str
    chunks: tuple[Chunk, ...]
    refused: tuple[tuple[str, str], ...] = ()

    @property
    def images(self) -> int:
        """How many images there are."""
        return sum(len(chunk.keys) for chunk in self.chunks)

    @property
    def keys(self) -> tuple[str, ...]:
        """Of all images, in order."""
        return tuple(key for chunk in self.chunks for key in chunk.keys)

    @property
    def labels(self) -> Labels:
        """Class of each of the N images, in order, (N,)."""
        return np.array([label for chunk in self.chunks for label in chunk.labels], dtype=np.int64)

    @property
    def digest(self) -> str:
        """Hash of the images and their classes."""
        return fingerprint([(chunk.digest, chunk.labels) for chunk in self.chunks])


def folder_part(storage: Storage, name: str, files: Sequence[tuple[str, int]]) -> Part:
    """A part of files.

    Args:
        storage: the set.
        name: of the part.
        files: path below the set and class of each, in order.

    Raises:
        DataError: a file cannot be read.
    """
    chunks: list[FolderChunk] = []
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(files), CHUNK_IMAGES):
            keys, labels = zip(*files[start : start + CHUNK_IMAGES], strict=True)
            digest = fingerprint(keys, list(pool.map(lambda path: _file_hash(storage, path), keys)))
            chunks.append(FolderChunk(storage.url, keys, labels, digest))
    return Part(name, tuple(chunks))


def _file_hash(storage: Storage, path: str) -> str:
    return hashlib.sha256(storage.read_bytes(path)).hexdigest()


def tar_part(storage: Storage, name: str, tars: Sequence[str], *, classes: Sequence[str]) -> Part:
    """A part of tars.

    Args:
        storage: the set.
        name: of the part.
        tars: their paths below the set, in order.
        classes: names of all classes.

    Raises:
        DataError: a tar cannot be read to its end, or a sample is of a class that is none of these.
    """
    numbers = {text: number for number, text in enumerate(classes)}
    with ThreadPoolExecutor(_READERS) as pool:
        opened = list(pool.map(lambda path: _open_tar(storage, path, numbers), tars))
    chunks = tuple(chunk for chunk, _ in opened if chunk.keys)
    return Part(name, chunks, tuple(item for _, refused in opened for item in refused))


def _open_tar(storage: Storage, path: str, numbers: Mapping[str, int]) -> tuple[TarChunk, list[tuple[str, str]]]:
    """A tar with the classes of its usable samples, and its other samples with their reasons."""
    source = f"{storage.url}/{path}"
    labels: dict[str, int] = {}
    refused: list[tuple[str, str]] = []
    with storage.open(path) as stream:
        hashing = _Hashing(stream)
        tar = cast(BinaryIO, hashing)
        for group in read_groups(tar, source=source, max_text_bytes=_MAX_LABEL_BYTES, also=("cls",)):
            key = _key(path, group)
            problem = group.problem or ("" if group.image is not None else "it has no image")
            label = None if problem else _label(group, numbers, source=f"{source}: {group.name!r}")
            if label is None or key in labels:
                reason = problem or ("its name stands twice" if key in labels else "no .cls, and no label in its JSON")
                refused.append((key, reason))
                continue
            labels[key] = label
    return TarChunk(storage.url, path, tuple(labels), tuple(labels.values()), hashing.hexdigest()), refused


def _key(path: str, group: Group) -> str:
    return f"{path}/{group.name}"


def _label(group: Group, numbers: Mapping[str, int], *, source: str) -> int | None:
    """Number of a sample's class, None when it says none. Raises DataError for a class that is not there."""
    value: object
    if "cls" in group.files:
        text = group.files["cls"].decode(errors="replace").strip()
        value = int(text) if text.isdecimal() else text
    else:
        try:
            meta = json.loads(group.files.get("json", b"{}"))
        except (ValueError, RecursionError):
            return None
        names = [name for name in _LABEL_KEYS if isinstance(meta, dict) and name in meta]
        if not names:
            return None
        value = meta[names[0]]
    if isinstance(value, str) and value in numbers:
        return numbers[value]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(numbers):
        return value
    raise DataError(
        f"{source}: class {str(value)[:80]!r} is not one of the set's: a number from 0 to {len(numbers) - 1} or "
        "a name of classnames.txt"
    )


class _Hashing:
    """A stream that hashes what is read of it. It cannot seek, so that nothing of a tar is passed over."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._hash = stream, hashlib.sha256()

    def seekable(self) -> bool:
        return False

    def read(self, size: int = -1) -> bytes:
        body = self._stream.read(size)
        self._hash.update(body)
        return body

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
