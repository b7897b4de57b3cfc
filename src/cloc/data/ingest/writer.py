"""The writer of an ingest: records into shards, several at a time, and the manifest last.

Shards come out the same whatever the number of processes. A run that was killed goes on by running it again: finished
shards are skipped (`pack`), and a data set without a manifest is unfinished.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloc.config.schema import DataConfig
from cloc.data import fingerprints
from cloc.data.dataset import Dataset, write_manifest
from cloc.data.ingest.admit import Limits
from cloc.data.ingest.finished import FOLDERS, ShardReport, remove_shard
from cloc.data.ingest.keys import check_keys
from cloc.data.ingest.pack import PackTask
from cloc.data.ingest.parts import Source
from cloc.data.ingest.tars import TarTask
from cloc.data.ingest.workers import Task, run_tasks
from cloc.data.processes import processes_of
from cloc.data.schema import MANIFEST, Manifest, Shard
from cloc.data.storage import Storage, open_storage
from cloc.errors import DataError

TOOL = "cloc data ingest"
_TOP_REASONS = 5
_FILE_OF_A_SHARD = re.compile(rf"(?:{'|'.join(FOLDERS)})/(\d{{5,}})\.(?:tar|parquet|json)")


@dataclass(frozen=True)
class IngestReport:
    """A finished data set.

    Attributes:
        manifest: as written.
        counts: images, quarantined, captions, regions, shards, ...
    """

    manifest: Manifest
    counts: Mapping[str, int]

    @property
    def quarantined_share(self) -> float:
        """Quarantined images over all that the source named; those that were to be left out (`not_in`) are no fault."""
        return (self.counts["quarantined"] - self.counts["leaked"]) / (
            self.counts["images"] + self.counts["quarantined"]
        )


def write_dataset(source: Source, *, output: str, settings: DataConfig, not_in: tuple[str, ...] = ()) -> IngestReport:
    """Writes a source as a data set.

    Args:
        source: an opened source.
        output: folder or `s3://` URL of the data set.
        settings: shard size, limits and processes.
        not_in: data sets whose images are left out.

    Raises:
        DataError: two images with one key, no usable image, too large a share quarantined, or `output` holds a data
            set that something else made.
    """
    storage = open_storage(output)
    _check_output(storage)
    limits = Limits(
        min_side=settings.min_side,
        max_pixels=settings.max_pixels,
        max_text_bytes=settings.max_text_bytes,
        near_duplicate_bits=settings.near_duplicate_bits,
        not_in=not_in,
        not_in_digests=_known(not_in, output=output, processes=settings.processes),
    )
    tasks = _tasks(source, output=output, limits=limits)
    reports = list(run_tasks(tasks, processes=processes_of(settings.processes)))
    counts: Counter[str] = Counter()
    for report in reports:
        counts.update(report.counts)
    shards = tuple(report.shard for report in reports if report.shard is not None)
    counts["shards"] = len(shards)
    counts["skipped_shards"] = sum(report.skipped for report in reports)
    _print_reasons(reports)
    _check_quarantine(reports, counts, output=output, limit=settings.quarantine_limit)
    if counts["skipped_shards"] < len(reports) or not storage.exists(MANIFEST):
        check_keys(storage, shards)  # whoever wrote a manifest of these same shards has checked them
    _remove_leftovers(storage, keep={_shard_name(index) for index in range(len(reports))})
    manifest = _manifest(source, shards, quarantined=counts["quarantined"] - counts["leaked"], settings=settings)
    write_manifest(storage, manifest)
    return IngestReport(manifest=manifest, counts={name: counts[name] for name in _COUNTS})


_COUNTS = (
    *("images", "quarantined", "leaked", "reencoded", "converted_profiles", "broken_profiles", "misnamed"),
    *("captions", "quarantined_captions"),
    *("regions", "quarantined_boxes", "clipped_boxes", "crowd_boxes"),
    *("shards", "skipped_shards", "quarantined_tars"),
)


def _tasks(source: Source, *, output: str, limits: Limits) -> Iterator[Task]:
    for index, part in enumerate(source.parts):
        yield PackTask(shard=_shard_name(index), part=part, output=output, limits=limits)
    for tar in source.tars:
        yield TarTask(tar=tar, output=output, limits=limits)


def _known(not_in: tuple[str, ...], *, output: str, processes: int) -> tuple[str, ...]:
    """Hashes of the data sets whose images are left out, after their fingerprints are made where they are missing."""
    if output.rstrip("/") in (url.rstrip("/") for url in not_in):
        raise DataError(f"not_in: {output} is the data set that is made; name another one")
    known = [Dataset.open(url) for url in not_in]
    for dataset in known:
        fingerprints.ensure(dataset, processes=processes)
    return tuple(dataset.digest for dataset in known)


def _shard_name(index: int) -> str:
    return f"{index:05d}"


def _check_output(storage: Storage) -> None:
    if not storage.exists(MANIFEST):
        return
    manifest = Manifest.from_json(storage.read_bytes(MANIFEST).decode(), source=f"{storage.url}/{MANIFEST}")
    maker = manifest.made_by.get("tool")
    if maker != TOOL:
        raise DataError(f"{storage.url}: holds a data set made by {maker!r}; choose another folder or remove it first")


def _print_reasons(reports: Sequence[ShardReport]) -> None:
    """Tells what was refused, the most frequent reasons first."""
    reasons: Counter[str] = Counter()
    for report in reports:
        reasons.update(report.reasons)
    if not reasons:
        return
    top = [f"{count} x {reason}" for reason, count in reasons.most_common(_TOP_REASONS)]
    others = reasons.total() - sum(count for _, count in reasons.most_common(_TOP_REASONS))
    print(f"ingest: quarantined: {'; '.join([*top, f'{others} x others'] if others else top)}", flush=True)


def _check_quarantine(reports: Sequence[ShardReport], counts: Mapping[str, int], *, output: str, limit: float) -> None:
    refused, tars = counts["quarantined"] - counts["leaked"], counts["quarantined_tars"]
    total = counts["quarantined"] + counts["images"]
    if not total:
        raise DataError("ingest: the source has no images")
    example = next((report.example for report in reports if report.example), "")
    if tars / len(reports) > limit:
        raise DataError(
            f"ingest: {tars} of {len(reports)} tars ({tars / len(reports):.1%}) had to be quarantined, more than "
            f"data.quarantine_limit {limit:.1%} allows; first: {_first_tar(reports)}; all: {output}/quarantine"
        )
    if refused / total > limit or not counts["images"]:
        raise DataError(
            f"ingest: {refused} of {total} images ({refused / total:.1%}) had to be quarantined, more than "
            f"data.quarantine_limit {limit:.1%} allows; first: {example}; all: {output}/quarantine"
        )


def _first_tar(reports: Sequence[ShardReport]) -> str:
    return next(report.example for report in reports if report.counts.get("quarantined_tars"))


def _remove_leftovers(storage: Storage, *, keep: set[str]) -> None:
    """Removes what earlier ingests into the same place left of shards that this one does not have."""
    found = (_FILE_OF_A_SHARD.fullmatch(path) for folder in FOLDERS for path in storage.walk(folder))
    names = {match[1] for match in found if match} - keep
    if names:
        storage.delete(MANIFEST)  # it may name them
    for name in sorted(names):
        remove_shard(storage, name)


def _manifest(source: Source, shards: tuple[Shard, ...], *, quarantined: int, settings: DataConfig) -> Manifest:
    limits = {
        name: getattr(settings, name) for name in ("images_per_shard", "bytes_per_shard", "min_side", "max_pixels")
    }
    made_by: dict[str, Any] = {"tool": TOOL, "source": source.kind, **source.details, **limits}
    json.dumps(made_by)  # the manifest is JSON: fail here, where the culprit is known
    return Manifest(shards=shards, quarantined=quarantined, classes=source.classes, made_by=made_by)
