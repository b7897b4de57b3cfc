"""Where bytes lie: a folder, behind the one interface that every reader and writer of data sets uses.

Paths inside a `Storage` are relative and use "/". An object appears whole or not at all.
"""

import os
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from cloc.errors import DataError


class Storage(Protocol):
    """A tree of immutable objects under a root."""

    @property
    def url(self) -> str:
        """The root: a folder's path or `s3://bucket/prefix`."""

    def open(self, path: str) -> BinaryIO:
        """A stream over an object, read front to back. Raises DataError when there is none."""

    def read_bytes(self, path: str) -> bytes:
        """A whole object. Raises DataError when there is none."""

    def read_tail(self, path: str, size: int) -> bytes:
        """The last `size` bytes of an object, all of a smaller one. Raises DataError when there is none."""

    def write_bytes(self, path: str, body: bytes) -> None:
        """Writes an object whole, replacing what was there."""

    def write_file(self, path: str, source: Path) -> None:
        """Moves a local file in as an object, whole, replacing what was there."""

    def delete(self, path: str) -> None:
        """Removes an object; nothing happens when there is none."""

    def exists(self, path: str) -> bool:
        """Whether there is such an object."""

    def list(self, prefix: str) -> list[str]:
        """Paths of the objects below a folder, sorted."""


def relative_path(path: str, *, root: str) -> PurePosixPath:
    """`path` as a path below `root`. Raises DataError when it would lead out of it."""
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "\0" in path:
        raise DataError(f"{path!r} points outside {root}")
    return parts


class FolderStorage:
    """A folder. Objects are written to a temporary name in the same folder, then renamed."""

    def __init__(self, root: str | Path) -> None:
        self._root = Path(root)

    @property
    def url(self) -> str:
        return str(self._root)

    def _path(self, path: str) -> Path:
        return self._root / relative_path(path, root=str(self._root))

    def open(self, path: str) -> BinaryIO:
        try:
            return self._path(path).open("rb")
        except FileNotFoundError:
            raise DataError(f"{self._root}: there is no {path}") from None

    def read_bytes(self, path: str) -> bytes:
        with self.open(path) as stream:
            return stream.read()

    def read_tail(self, path: str, size: int) -> bytes:
        with self.open(path) as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - size))
            return stream.read()

    def write_bytes(self, path: str, body: bytes) -> None:
        target = self._path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=".tmp-")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(body)
            Path(temporary).chmod(0o644)
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def write_file(self, path: str, source: Path) -> None:
        target = self._path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".tmp-{os.getpid()}-{target.name}")
        shutil.move(source, temporary)
        temporary.replace(target)

    def delete(self, path: str) -> None:
        self._path(path).unlink(missing_ok=True)

    def exists(self, path: str) -> bool:
        return self._path(path).is_file()

    def list(self, prefix: str) -> list[str]:
        found = (item for item in self._path(prefix).rglob("*") if item.is_file() and not item.name.startswith(".tmp-"))
        return sorted(item.relative_to(self._root).as_posix() for item in found)


def open_storage(url: str | Path) -> Storage:
    """The storage for a folder's path or an `s3://bucket/prefix` URL. Raises DataError for another scheme."""
    text = str(url)
    scheme, sign, _ = text.partition("://")
    if not sign or scheme == "file":
        return FolderStorage(text.removeprefix("file://"))
    if scheme == "s3":
        from cloc.data.s3 import S3Storage

        return S3Storage(text)
    raise DataError(f"{text}: storage {scheme}:// is unknown; use a folder or s3://bucket/prefix")
