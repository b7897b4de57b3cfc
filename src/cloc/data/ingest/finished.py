"""When a shard of an ingest is finished: what it leaves, and how a later run finds that it need not be made again.

`stats/<shard>.json` is written last and says what the shard was made from; with it, a shard that is finished and whose
sources and settings are the same is skipped by the next run.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from cloc.data import tables
from cloc.data.ingest.admit import Rows
from cloc.data.schema import MANIFEST, Shard, Table
from cloc.data.storage import Storage

_LABELS: tuple[Table, ...] = ("captions", "regions", "fingerprints")
_LATER: tuple[Table, ...] = ("duplicates", "attributes")  # that are made of a shard afterwards
_ALL: tuple[Table, ...] = (*_LABELS, "quarantine", *_LATER)
FOLDERS = ("images", *_ALL, "stats")
_KEPT_REASONS = 50  # kinds of quarantine reasons in a shard's record


@dataclass(frozen=True)
class ShardReport:
    """What became of a shard.

    Attributes:
        shard: its manifest entry; None when no image was usable.
        counts: images, quarantined, captions, regions, ...
        reasons: how many rows of its quarantine have which kind of reason.
        example: the first quarantined image with its reason, "" without one.
        skipped: whether an earlier run had finished it.
    """

    shard: Shard | None
    counts: Mapping[str, int]
    reasons: Mapping[str, int] = field(default_factory=dict)
    example: str = ""
    skipped: bool = False


def stats_path(shard: str) -> str:
    """Path of the record that a shard is finished."""
    return f"stats/{shard}.json"


def tar_path(shard: str) -> str:
    """Path of the tar of a shard that was packed."""
    return f"images/{shard}.tar"


def find_shard(storage: Storage, shard: str, source_hash: str) -> ShardReport | None:
    """The report of an earlier run that made the same shard whole, or None."""
    if not storage.exists(stats_path(shard)):
        return None
    stats = json.loads(storage.read_bytes(stats_path(shard)))
    if stats["fingerprint"] != source_hash:
        return None
    entry = Shard(**stats["shard"]) if stats["shard"] else None
    paths = [tables.table_path("quarantine", shard)]
    if entry is not None:
        paths += [tables.table_path(table, shard) for table in _LABELS]
        paths += [] if entry.foreign else [entry.path]
    if not all(storage.exists(path) for path in paths):
        return None
    return ShardReport(entry, stats["counts"], stats["reasons"], stats["example"], skipped=True)


def begin_shard(storage: Storage, shard: str) -> None:
    """Voids what is there of a shard: from here on the data set differs from what its manifest says."""
    storage.delete(MANIFEST)
    storage.delete(stats_path(shard))


def finish_shard(storage: Storage, shard: str, entry: Shard | None, rows: Rows, *, source_hash: str) -> ShardReport:
    """Writes a shard's tables, removes what an earlier one left that this one lacks, and writes its record."""
    hashes = {"input_hash": entry.sha256 if entry else "", "config_hash": source_hash}
    tables.write_table(storage, "quarantine", shard, rows.quarantine, **hashes)
    for table in _LABELS:
        if entry is None:
            storage.delete(tables.table_path(table, shard))
        else:
            tables.write_table(storage, table, shard, getattr(rows, table), **hashes)
    for table in _LATER:  # of what was there before
        storage.delete(tables.table_path(table, shard))
    if entry is None or entry.foreign:
        storage.delete(tar_path(shard))
    report = ShardReport(
        shard=entry,
        counts=rows.totals(),
        reasons=dict(rows.reasons().most_common(_KEPT_REASONS)),
        example=rows.example(),
    )
    stats = {
        "fingerprint": source_hash,
        "shard": dataclasses.asdict(entry) if entry else None,
        "counts": report.counts,
        "reasons": report.reasons,
        "example": report.example,
    }
    storage.write_bytes(stats_path(shard), (json.dumps(stats, indent=1, sort_keys=True) + "\n").encode())
    return report


def remove_shard(storage: Storage, shard: str) -> None:
    """Removes all that is of a shard, the record last: a removal that was killed is found again by it."""
    storage.delete(tar_path(shard))
    for table in _ALL:
        storage.delete(tables.table_path(table, shard))
    storage.delete(stats_path(shard))
