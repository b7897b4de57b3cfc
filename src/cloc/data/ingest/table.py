"""Reader: a table with an image in each row, in Parquet or as the `datasets` library saves it; read by pyarrow alone.

    cloc data ingest --table laion/ --columns image=jpg,caption=TEXT --out data/train
    cloc data ingest --table "hub/data/train-*" --out data/train

A table is a Parquet file (or an Arrow stream of `datasets`), a folder or `s3://` prefix of Parquet files (its
subfolders too; names that begin with "." or "_" are left out), a pattern with `*` for some of them, or a folder that
`save_to_disk` wrote. Which columns are read, and what they may be called, stands in `table_plan`. Captions are of the
kind `alt_text`.

A shard is a range of rows over one or more files. The process that cuts them reads only what the files say of
themselves, one file at a time; rows are read by the worker that packs them. Rows before a shard in its row group are
read and dropped, so files with row groups of about a shard's size, or less, go fastest. Where a row has the path of its
image instead of the bytes, the image is read below `images`, by default the table's folder.
"""

import dataclasses
import fnmatch
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from cloc.data.ingest.columns import parse_columns
from cloc.data.ingest.parts import Item, ShardSize, Source
from cloc.data.ingest.records import key_of
from cloc.data.ingest.table_files import open_table_file
from cloc.data.ingest.table_plan import COLUMNS, TablePlan, plan_columns
from cloc.data.ingest.table_rows import RowReader
from cloc.data.storage import Storage, open_storage, relative_path
from cloc.errors import DataError
from cloc.stage import fingerprint

# Names of files that `datasets` writes: <split>-00000-of-00003.parquet.
_SPLIT = re.compile(r"(train|test|validation|valid|val|dev|eval)-\d{5}-of-\d{5}[^/]*", re.IGNORECASE)


@dataclass(frozen=True)
class RowRange:
    """Rows of one file.

    Attributes:
        path: the file, below the table's root.
        version: of the file.
        first, rows: which rows.
    """

    path: str
    version: str
    first: int
    rows: int


@dataclass(frozen=True)
class TablePart:
    """The rows of a shard.

    Attributes:
        root: folder or URL that the files lie below.
        images: folder or URL of images that rows have by their path alone; they are taken to stay as they are.
        plan: the columns.
        ranges: the rows.
    """

    root: str
    images: str
    plan: TablePlan
    ranges: tuple[RowRange, ...]

    def fingerprint(self) -> str:
        return fingerprint(dataclasses.astuple(self.plan), [dataclasses.astuple(item) for item in self.ranges])

    def read(self) -> Iterator[Item]:
        seen: dict[str, str] = {}
        for rows in self.ranges:
            for number, item in enumerate(self._read(rows), start=rows.first):
                place = f"row {number} of {rows.path}"
                known = seen.setdefault(item.record.key, place)
                if known != place:
                    raise DataError(f"table: {self.root}: {known} and {place} have the same key {item.record.key!r}")
                yield item

    def _read(self, rows: RowRange) -> Iterator[Item]:
        file = open_table_file(open_storage(self.root), rows.path)
        if file.version != rows.version:
            raise DataError(f"table: {self.root}/{rows.path} has changed meanwhile; run the same command again")
        reader = RowReader(self.plan, images=open_storage(self.images), file=rows.path)
        number = rows.first
        for batch in file.batches(self.plan.top_columns(), first=rows.first, rows=rows.rows):
            for index in range(len(batch)):
                try:
                    row = batch.slice(index, 1).to_pylist()[0]
                except UnicodeDecodeError:
                    yield reader.unreadable(number=number)
                else:
                    yield reader.read(row, number=number)
                number += 1


def read_table(*, table: str, images: str = "", columns: str = "", size: ShardSize) -> Source:
    """Opens a table.

    Args:
        table: Parquet file, folder, `s3://` prefix, pattern with `*`, or folder that `save_to_disk` wrote.
        images: folder or URL that paths of images are relative to; "" for the table's folder.
        columns: names of its columns, as in "image=img,caption=text"; see `table_plan`.
        size: of a shard.

    Raises:
        DataError: there is no such table, its files mix splits or differ in their columns, there is no image column,
            or more than one.
    """
    named = parse_columns(columns, known=COLUMNS)
    root, paths = _find(table)
    _check_names(root, paths)
    plan = _plan(root, paths[0], named)
    return Source(
        kind="table",
        parts=_parts(root, paths, plan, named, images=images or root, size=size),
        details={"columns": plan.described()},
    )


# --- which files


def _find(table: str) -> tuple[str, list[str]]:
    """The root of a table and its files below, in order."""
    stem, pattern = _split_pattern(table)
    storage = open_storage(stem)
    if not pattern:
        parent, _, name = stem.rpartition("/")
        parent = parent or ("/" if stem.startswith("/") else ".")
        if (_is_parquet(name) or name.endswith(".arrow")) and open_storage(parent).exists(name):
            return parent, [name]
        saved = _saved_files(storage, table)
        if saved:
            return stem, saved
    paths = [path for path in storage.walk("") if _is_parquet(path) and not _is_hidden(path)]
    found = [path for path in paths if _matches(path, pattern)] if pattern else paths
    if not found:
        raise DataError(f"table: there are no Parquet files at {table}, and nothing that `datasets` saved")
    return stem, found


def _split_pattern(table: str) -> tuple[str, str]:
    """A path without and behind the folder in which `*` begins; all of it and "" when there is none."""
    table = table.rstrip("/") or "/"
    if "*" not in table:
        return table, ""
    head, _, _ = table.partition("*")
    folder, _, _ = head.rpartition("/")
    return (folder or ("/" if head.startswith("/") else ".")), table[len(folder) + 1 if "/" in head else 0 :]


def _matches(path: str, pattern: str) -> bool:
    """Whether a path fits a pattern, in which `*` stands for a part of one name."""
    names, patterns = path.split("/"), pattern.split("/")
    return len(names) == len(patterns) and all(map(fnmatch.fnmatchcase, names, patterns))


def _saved_files(storage: Storage, table: str) -> list[str]:
    """The files of a folder that `save_to_disk` wrote, none when it is another folder."""
    if storage.exists("dataset_dict.json"):
        splits = _json(storage, "dataset_dict.json").get("splits")
        listed = ", ".join(map(str, splits)) if isinstance(splits, list) else "some"
        raise DataError(f"table: {table} holds the splits {listed}: name one, as in {table.rstrip('/')}/train")
    if not storage.exists("state.json"):
        return []
    files = _json(storage, "state.json").get("_data_files")
    names = [item.get("filename") for item in files if isinstance(item, dict)] if isinstance(files, list) else []
    paths = [relative_path(name, root=table).as_posix() for name in names if isinstance(name, str)]
    if not paths or len(paths) < len(names):
        raise DataError(f"table: {table}/state.json names no data files; save the data set again")
    return paths


def _json(storage: Storage, path: str) -> Mapping[str, Any]:
    try:
        tree = json.loads(storage.read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"table: {storage.url}/{path} is not valid JSON ({error}); save the data set again") from None
    return tree if isinstance(tree, dict) else {}


def _is_parquet(path: str) -> bool:
    return path.lower().endswith((".parquet", ".pq"))


def _is_hidden(path: str) -> bool:
    """Whether a path leads through what Spark and others keep for themselves."""
    return any(part.startswith((".", "_")) for part in PurePosixPath(path).parts)


def _check_names(root: str, paths: list[str]) -> None:
    """Raises DataError when files mix splits, or when two would give their rows the same keys."""
    splits = sorted({match[1].lower() for path in paths if (match := _SPLIT.fullmatch(PurePosixPath(path).name))})
    if len(splits) > 1:
        raise DataError(f"table: {root} mixes the splits {', '.join(splits)}; name one, as in '{root}/{splits[0]}-*'")
    keys: dict[str, str] = {}
    for path in paths:
        known = keys.setdefault(key_of(path), path)
        if known != path:
            raise DataError(f"table: {root}: rows of {known!r} and {path!r} would have the same keys; rename one")


# --- which rows


def _plan(root: str, path: str, named: Mapping[str, str]) -> TablePlan:
    file = open_table_file(open_storage(root), path)
    return plan_columns(file.schema, named, where=f"{root}/{path}")


def _parts(
    root: str, paths: list[str], plan: TablePlan, named: Mapping[str, str], *, images: str, size: ShardSize
) -> Iterator[TablePart]:
    for ranges in cut_rows(_chunks(root, paths, plan, named), size=size):
        yield TablePart(root=root, images=images, plan=plan, ranges=ranges)


@dataclass(frozen=True)
class RowChunk:
    """Neighbouring rows of a file with the bytes of their images."""

    rows: RowRange
    image_bytes: int


def _chunks(root: str, paths: list[str], plan: TablePlan, named: Mapping[str, str]) -> Iterator[RowChunk]:
    storage = open_storage(root)
    for path in paths:
        file = open_table_file(storage, path)
        found = plan_columns(file.schema, named, where=f"{root}/{path}")
        if found != plan:
            raise DataError(f"table: {root}: {path} has other columns than {paths[0]} ({_difference(found, plan)})")
        first = 0
        for chunk in file.chunks(plan.image[0]):
            yield RowChunk(RowRange(path, file.version, first, chunk.rows), chunk.image_bytes)
            first += chunk.rows


def _difference(found: TablePlan, plan: TablePlan) -> str:
    """The first thing that two plans differ in."""
    pairs = ((item.name, getattr(found, item.name), getattr(plan, item.name)) for item in dataclasses.fields(plan))
    return next(f"{name}: {str(a)[:80]!r}, not {str(b)[:80]!r}" for name, a, b in pairs if a != b)


def cut_rows(chunks: Iterable[RowChunk], *, size: ShardSize) -> Iterator[tuple[RowRange, ...]]:
    """Cuts rows into shards; within a chunk, all rows count as equally large."""
    held: list[RowRange] = []
    images = body = 0
    for chunk in chunks:
        rows = chunk.rows
        first, left = rows.first, rows.rows
        while left:
            room = size.images - images
            if size.bytes and chunk.image_bytes:
                room = min(room, (size.bytes - body) * rows.rows // chunk.image_bytes)
            if room <= 0 and held:
                yield tuple(held)
                held, images, body = [], 0, 0
                continue
            take = min(max(room, 1), left)  # an image that is larger than a shard gets one of its own
            if held and held[-1].path == rows.path:
                held[-1] = dataclasses.replace(held[-1], rows=held[-1].rows + take)
            else:
                held.append(dataclasses.replace(rows, first=first, rows=take))
            images, body = images + take, body + take * chunk.image_bytes // rows.rows
            first, left = first + take, left - take
    if held:
        yield tuple(held)
