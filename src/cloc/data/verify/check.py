"""Verifies a folder or an `s3://` prefix against a manifest.

    cloc data verify s3://bucket/data/train --against manifests/train.json

What lies there is listed once, and everything in the listing is looked at as it comes. So memory is taken for the
manifest, which is proportional to shards, and for a few shards under way; nothing holds samples.
"""

import random
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import get_args

from cloc.data import tables
from cloc.data.dataset import Dataset
from cloc.data.schema import MANIFEST, Manifest, Shard, Table
from cloc.data.storage import Entry, Storage, open_storage
from cloc.data.verify.labels import OF_THE_SET, TableCheck
from cloc.data.verify.manifests import in_itself, of_the_data, read_manifest
from cloc.data.verify.outcomes import Look, Outcome, in_threads
from cloc.data.verify.record import Record
from cloc.data.verify.report import Difference, Kind, Report, amount
from cloc.data.verify.shards import ShardCheck

_PROGRESS_S = 5.0
_WHOLE: tuple[Table, ...] = ("captions", "regions", "fingerprints")  # where a shard beside the images has one, all have
_ALSO = ("stats", "quarantine")  # folders of ingest, which also tell of tars that were left out as a whole


@dataclass(frozen=True)
class Request:
    """What is to be verified, and how.

    Attributes:
        data: data set: folder or URL.
        against: another manifest than the data set's own, a file or an object; "" for its own.
        tables: roots of the tables of labelling, by table.
        hashed: of how many shards the hash is verified; None for all. Of the others it is the size.
        reads_tables: whether the tables of the hashed shards are read, or just listed.
        threads: shards at a time.
        fresh: what is hashed is read, whatever record and store know.
        progress: whether to say how far it is, on stderr.
    """

    data: str
    against: str = ""
    tables: Mapping[Table, str] = field(default_factory=dict)
    hashed: int | None = None
    reads_tables: bool = True
    threads: int = 1
    fresh: bool = False
    progress: bool = True


def verify(request: Request, *, record: Record) -> Report:
    """Compares what lies at a place with a manifest.

    Args:
        request: what, and how.
        record: of what was read; what is read is added to it.

    Raises:
        DataError: there is no manifest, or it is none of this version; or the storage fails as a whole.
    """
    started = time.monotonic()
    storage = open_storage(request.data)
    source, text = read_manifest(storage, request.against)
    manifest = Manifest.from_json(text, source=source)
    stop = threading.Event()
    dataset = Dataset(images=storage, manifest=manifest, captions=storage, regions=storage)
    roots = {table: open_storage(root) for table, root in request.tables.items()}
    run = _Run(
        manifest=manifest,
        hashed=_chosen(manifest, request.hashed),
        reads_tables=request.reads_tables,
        shards=ShardCheck(dataset, record, request.fresh, stop),
        tables=TableCheck(storage, roots),
    )
    report = Report(
        data=storage.url,
        manifest=source,
        digest=dataset.digest,
        shards=len(manifest.shards),
        images=manifest.images,
        bytes=sum(shard.bytes for shard in manifest.shards),
    )
    report.differences += in_itself(text, manifest, source)
    if request.against:
        report.differences += of_the_data(storage, text, manifest)
    progress = _Progress(report, on=request.progress)
    for outcome in in_threads(run.looks(), threads=request.threads, stop=stop):
        report.differences += outcome.differences
        report.read_bytes += outcome.read
        if outcome.way:
            report.ways[outcome.way] += 1
        if outcome.table:
            report.tables[outcome.table] += 1
        if outcome.unknown:
            report.unknown[outcome.table] += 1
        progress.advance(outcome)
    report.seconds = time.monotonic() - started
    return report


def _chosen(manifest: Manifest, hashed: int | None) -> Collection[str]:
    """Names of the shards whose hash is verified: where they are a sample, by chance."""
    names = [shard.name for shard in manifest.shards]
    return frozenset(names if hashed is None else random.sample(names, min(hashed, len(names))))


@dataclass
class _Run:
    """A verification under way.

    Attributes:
        manifest: what there should be.
        hashed: names of the shards whose hash is verified, and whose tables are looked at.
        reads_tables: whether tables are read, and not just listed.
        shards, tables: how.
    """

    manifest: Manifest
    hashed: Collection[str]
    reads_tables: bool
    shards: ShardCheck
    tables: TableCheck

    def looks(self) -> Iterator[Outcome | Look]:
        """All that is to be looked at, as it is listed."""
        names = {shard.name: shard for shard in self.manifest.shards}
        yield from self._own(names)
        yield from self._elsewhere()
        for table, root in self.tables.roots.items():
            yield from self._labels(table, root, names)

    def _own(self, names: Mapping[str, Shard]) -> Iterator[Outcome | Look]:
        """The data set's own folder."""
        storage = self.tables.images
        waiting = {shard.path: shard for shard in self.manifest.shards if not shard.foreign}
        seen: dict[Table, set[str]] = {table: set() for table in _WHOLE}
        for entry in storage.scan(""):
            if entry.path in waiting:
                yield self._shard(waiting.pop(entry.path), entry, storage)
                continue
            path = PurePosixPath(entry.path)
            if (table := _table_of(path)) and path.stem in names:
                shard = names[path.stem]
                if table in seen:
                    seen[table].add(shard.name)
                yield from self._table(table, shard, storage)
            elif _unexpected(path):
                yield _extra(entry.path)
        for shard in waiting.values():
            yield partial(self.shards.missing, shard, shard.path, storage, hashed=shard.name in self.hashed)
        for table, found in seen.items():
            if found:
                for name in sorted(names.keys() - found):
                    yield _missing(tables.table_path(table, name))

    def _elsewhere(self) -> Iterator[Outcome | Look]:
        """Tars that lie elsewhere, folder by folder; what else lies there is none of the data set's."""
        folders: dict[str, dict[str, Shard]] = defaultdict(dict)
        for shard in self.manifest.shards:
            if shard.foreign:
                folder, _, name = shard.path.rpartition("/")
                folders[folder or "/"][name] = shard
        for folder, waiting in folders.items():
            storage = open_storage(folder)
            for entry in storage.scan(""):
                if entry.path in waiting:
                    yield self._shard(waiting.pop(entry.path), entry, storage)
            for name, shard in waiting.items():
                yield partial(self.shards.missing, shard, name, storage, hashed=shard.name in self.hashed)

    def _labels(self, table: Table, root: Storage, names: Mapping[str, Shard]) -> Iterator[Outcome | Look]:
        """A root of tables that labelling wrote: it has one for each shard."""
        waiting = set(names)
        for entry in root.scan(table):
            name = PurePosixPath(entry.path).stem
            if entry.path == tables.table_path(table, name) and name in waiting:
                waiting.discard(name)
                yield from self._table(table, names[name], root)
            else:
                yield _extra(f"{root.url}/{entry.path}")
        for name in sorted(waiting):
            yield _missing(f"{root.url}/{tables.table_path(table, name)}")

    def _shard(self, shard: Shard, entry: Entry, storage: Storage) -> Outcome | Look:
        return self.shards.look(shard, entry, storage, hashed=shard.name in self.hashed)

    def _table(self, table: Table, shard: Shard, root: Storage) -> Iterator[Look]:
        if self.reads_tables and shard.name in self.hashed and table not in OF_THE_SET:
            yield partial(self.tables.look, table, shard, root=root)


def _table_of(path: PurePosixPath) -> Table | None:
    """The table that a file is one of, by its path."""
    if len(path.parts) != 2 or path.suffix != ".parquet":
        return None
    return next((table for table in get_args(Table) if table == path.parts[0]), None)


def _unexpected(path: PurePosixPath) -> bool:
    """Whether a file is none that a data set has besides its shards and their tables."""
    if str(path) == MANIFEST or any(part.startswith(".") for part in path.parts):
        return False
    return not (path.parts[0] in _ALSO and len(path.parts) == 2)


def _extra(path: str) -> Outcome:
    return Outcome((Difference(Kind.EXTRA, path, detail="not of the manifest"),))


def _missing(path: str) -> Outcome:
    return Outcome((Difference(Kind.MISSING, path),))


class _Progress:
    """Says now and then how far it is."""

    def __init__(self, report: Report, *, on: bool) -> None:
        self._report, self._on, self._shards, self._bytes = report, on, 0, 0
        self._started = self._printed = time.monotonic()

    def advance(self, outcome: Outcome) -> None:
        self._shards += outcome.shards
        self._bytes += outcome.bytes
        now = time.monotonic()
        if not self._on or now - self._printed < _PROGRESS_S:
            return
        self._printed, passed, report = now, now - self._started, self._report
        read = f"{amount(report.read_bytes)} read ({amount(report.read_bytes / passed)}/s)"
        line = (
            f"verify: {self._shards:,} of {report.shards:,} shards, {amount(self._bytes)} of {amount(report.bytes)}, "
            f"{read}, {len(report.differences):,} differences after {passed:,.0f} s"
        )
        print(line, file=sys.stderr, flush=True)
