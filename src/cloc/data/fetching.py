"""Copies between a storage and local files."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from cloc.data.storage import Storage, open_storage
from cloc.errors import DataError


def fetch(url: str, prefix: str, folder: Path) -> None:
    """Copies the objects of a storage below `prefix` into a folder. Raises DataError when there are none."""
    storage = open_storage(url)
    found = storage.list(prefix)
    if not found:
        raise DataError(f"{url}: there is nothing below {prefix}/")
    for path in found:
        copy(storage, path, folder / Path(path).relative_to(prefix))


def copy(storage: Storage, path: str, target: Path) -> None:
    """Copies an object to a local file, which appears whole. Raises DataError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    with storage.open(path) as source, partial.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
    partial.replace(target)


@contextmanager
def sending(url: str, prefix: str = "") -> Iterator[Path]:
    """A temporary folder whose files are copied to a storage, below `prefix`, at the end of the context; after an error
    none is."""
    with TemporaryDirectory() as folder:
        yield Path(folder)
        send(Path(folder), url, prefix)


def send(folder: Path, url: str, prefix: str = "") -> None:
    """Copies all files of a folder to a storage, below `prefix`."""
    storage = open_storage(url)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            storage.write_file(f"{prefix}/{name}" if prefix else name, path)
