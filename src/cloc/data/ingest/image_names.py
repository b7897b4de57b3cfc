"""How annotations name images, and where these lie: data sets spread them over folders, people put them in one."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from cloc.data.ingest.records import Record, read_names
from cloc.data.storage import relative_path
from cloc.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def bare(name: str) -> str:
    """A name without folders and without the suffix of an image: what the lists of splits have."""
    last = PurePosixPath(name).name
    suffix = PurePosixPath(last).suffix
    return last.removesuffix(suffix) if suffix.lower() in SUFFIXES else last


def keep_listed(records: Iterable[Record], only: str) -> Iterator[Record]:
    """Records that the file `only` lists, one a line, by path, file name or bare name; all of them without a file.

    Raises:
        DataError: the file cannot be read or is empty; or, at the end, a listed image did not occur.
    """
    names = read_names(only)
    return iter(records) if names is None else _keep(records, set(map(bare, names)), only)


def _keep(records: Iterable[Record], names: set[str], only: str) -> Iterator[Record]:
    missing = set(names)
    for record in records:
        name = bare(record.name)
        if name in names:
            missing.discard(name)
            yield record
    if missing:
        raise DataError(f"only: {only} lists {len(missing)} images that the source lacks (first: {min(missing)!r})")


def located(records: Iterable[Record], folder: Path) -> Iterator[Record]:
    """Records with their names as they lie in the folder: below the folders that the source names, or without these."""
    for record in records:
        yield replace(record, name=locate(folder, (record.name, PurePosixPath(record.name).name)))


def locate(folder: Path, names: Iterable[str]) -> str:
    """The first of the names that is a file below the folder; the first one when none is."""
    names = list(names)
    for name in names:
        try:
            if (folder / relative_path(name, root=str(folder))).is_file():
                return name
        except (DataError, OSError):
            continue  # a hostile or impossible name is no file; the shard refuses it with its reason
    return names[0]
