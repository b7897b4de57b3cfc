"""Where bytes lie: a folder, behind the one interface that every reader and writer of data sets uses.

Paths inside a `Storage` are relative and use "/". An object appears whole or not at all.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from cloc.errors import DataError

_TEMPORARY = ".tmp-"


class Trouble(StrEnum):
    """What is wrong with a storage, for code that must tell causes apart; people read the error's message."""

    UNREACHABLE = "unreachable"
    NOT_S3 = "not S3"
    CERTIFICATE = "certificate"
    DENIED = "denied"
    CLOCK = "clock"
    REGION = "region"
    NO_BUCKET = "no bucket"
    NO_OBJECT = "no object"
    OUTSIDE = "outside the object"
    FULL = "full"
    FAILING = "failing"
    OTHER = "other"


class StorageError(DataError):
    """A storage cannot do what was asked; the message names the object, the place, and what to do."""

    def __init__(self, message: str, trouble: Trouble = Trouble.OTHER) -> None:
        super().__init__(message)
        self.trouble = trouble


@dataclass(frozen=True)
class Entry:
    """An object in a listing.

    Attributes:
        path: below the storage's root.
        size: bytes.
        version: as `Storage.version` gives it.
    """

    path: str
    size: int
    version: str


@dataclass(frozen=True)
class Past:
    """What an object was before, where a storage keeps that.

    Attributes:
        version_id: by which the storage gives it.
        size: bytes.
        modified: when it was written, ISO 8601.
    """

    version_id: str
    size: int
    modified: str


class Storage(Protocol):
    """A tree of immutable objects under a root. What goes wrong is a StorageError (a DataError)."""

    @property
    def url(self) -> str:
        """The root: a folder's path or `s3://bucket/prefix`."""

    def open(self, path: str) -> BinaryIO:
        """A stream over an object, read front to back. Raises DataError when there is none."""

    def read_bytes(self, path: str) -> bytes:
        """A whole object. Raises DataError when there is none."""

    def read_range(self, path: str, *, offset: int, size: int) -> bytes:
        """`size` bytes of an object from byte `offset` on, fewer where it ends before. DataError when there is none."""

    def read_tail(self, path: str, size: int) -> bytes:
        """The last `size` bytes of an object, all of a smaller one. Raises DataError when there is none."""

    def size(self, path: str) -> int:
        """Bytes of an object. Raises DataError when there is none."""

    def version(self, path: str) -> str:
        """A text that changes with the object: its size with its time or ETag. Raises DataError when there is none."""

    def write_bytes(self, path: str, body: bytes) -> None:
        """Writes an object whole, replacing what was there."""

    def write_file(self, path: str, source: Path) -> None:
        """Moves a local file in as an object, whole, replacing what was there."""

    def delete(self, path: str) -> None:
        """Removes an object; nothing happens when there is none."""

    def exists(self, path: str) -> bool:
        """Whether there is such an object."""

    def walk(self, prefix: str) -> Iterator[str]:
        """Paths of the objects below a folder in sorted order, as they are found: however many, few are in memory."""

    def list(self, prefix: str) -> list[str]:
        """Paths of the objects below a folder, sorted."""

    def scan(self, prefix: str) -> Iterator[Entry]:
        """What `walk` finds, with sizes and versions: on S3 all of it is in the listing itself."""

    def stored_sha256(self, path: str) -> str:
        """The SHA-256 of an object's bytes that the storage itself keeps, hexadecimal; "" where it keeps none. Nothing
        is read. Raises DataError when there is no such object."""

    def past(self, path: str) -> Iterator[Past]:
        """The versions of an object that the storage keeps besides the present one, the newest first; also of one that
        was deleted."""

    def open_past(self, path: str, version_id: str) -> BinaryIO:
        """A stream over such a version. Raises DataError when there is none."""


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
        with self._errors(path):
            return self._path(path).open("rb")

    def read_bytes(self, path: str) -> bytes:
        with self._errors(path):
            return self._path(path).read_bytes()

    def read_range(self, path: str, *, offset: int, size: int) -> bytes:
        with self._errors(path), self._path(path).open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)

    def read_tail(self, path: str, size: int) -> bytes:
        with self._errors(path), self._path(path).open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - size))
            return stream.read()

    def size(self, path: str) -> int:
        with self._errors(path):
            return self._path(path).stat().st_size

    def version(self, path: str) -> str:
        with self._errors(path):
            return _version(self._path(path).stat())

    def write_bytes(self, path: str, body: bytes) -> None:
        with self._errors(path), self._replacing(path) as temporary:
            temporary.write_bytes(body)

    def write_file(self, path: str, source: Path) -> None:
        with self._errors(path), self._replacing(path) as temporary:
            shutil.move(source, temporary)

    @contextmanager
    def _replacing(self, path: str) -> Iterator[Path]:
        """A temporary file beside the object, which becomes the object when the block ends well."""
        target = self._path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=_TEMPORARY)
        os.close(descriptor)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def delete(self, path: str) -> None:
        with self._errors(path):
            self._path(path).unlink(missing_ok=True)

    def exists(self, path: str) -> bool:
        return self._path(path).is_file()

    def walk(self, prefix: str) -> Iterator[str]:
        folder = relative_path(prefix, root=str(self._root)).as_posix()
        with self._errors(prefix):
            yield from _walk(str(self._root), "" if folder == "." else f"{folder}/")

    def list(self, prefix: str) -> list[str]:
        return list(self.walk(prefix))

    def scan(self, prefix: str) -> Iterator[Entry]:
        for path in self.walk(prefix):
            with self._errors(path):
                found = os.stat(f"{self._root}/{path}")
            yield Entry(path, found.st_size, _version(found))

    def stored_sha256(self, path: str) -> str:
        return ""

    def past(self, path: str) -> Iterator[Past]:
        return iter(())

    def open_past(self, path: str, version_id: str) -> BinaryIO:
        raise StorageError(f"{self._root}/{path}: a folder keeps no versions", Trouble.NO_OBJECT)

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._explain(error, path) from None

    def _explain(self, error: OSError, path: str) -> StorageError:
        where = f"{self._root}/{path}"
        if isinstance(error, FileNotFoundError):
            return StorageError(f"{self._root}: there is no {path}", Trouble.NO_OBJECT)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return StorageError(f"{where}: {error.strerror}; free some space or choose another folder", Trouble.FULL)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return StorageError(
                f"{where}: {error.strerror}; give this user the right to it, or choose another folder",
                Trouble.DENIED,
            )
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            return StorageError(f"{where}: {error.strerror}; a file and a folder are in each other's way there")
        return StorageError(f"{where}: {error.strerror or error}")


def _version(found: os.stat_result) -> str:
    return f"{found.st_size} {found.st_mtime_ns}"


def _walk(root: str, folder: str) -> Iterator[str]:
    """Paths of the files below a folder ("" or "name/") of a root, in order, one folder's names in memory at a time."""
    try:
        with os.scandir(f"{root}/{folder}") as found:
            # A folder's files sort behind "name/", as in the paths themselves.
            items = sorted(
                (f"{item.name}/" if item.is_dir(follow_symlinks=False) else item.name, item.is_file())
                for item in found
                if not item.name.startswith(_TEMPORARY)
            )
    except (FileNotFoundError, NotADirectoryError):
        return
    for name, is_file in items:
        if is_file:
            yield f"{folder}{name}"
        elif name.endswith("/"):
            yield from _walk(root, f"{folder}{name}")


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
