"""The resumable shard worker that captioning and grounding share.

A shard is the unit of work, retry and commit: its samples are streamed, decoded, labelled in batches, and its table
appears whole, with the hashes of what it was made from and of the settings that matter. So a killed run loses at most
its shard, a rerun skips what stands, and what changed is redone. A bad image goes to quarantine and stops nothing.

Quarantine rows of a whole image carry the stage's name ("grounding"); rows of a single box or caption of an image that
keeps its others carry "<stage>/item". Only whole images count towards the limit.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from typing import Any, Protocol, TypeVar

from PIL import Image

from cloc.data import tables
from cloc.data.dataset import Dataset, LabeledSample
from cloc.data.schema import Shard, Table
from cloc.data.storage import Storage, open_storage
from cloc.errors import ClocError, DataError
from cloc.labeling.images import BadImageError, decode
from cloc.labeling.progress import Progress
from cloc.labeling.statistics import ShardStats, Totals
from cloc.stage import fingerprint

_READ_AHEAD = 4  # shards handed to a process ahead of the one it works on
_T = TypeVar("_T")


@dataclass(frozen=True)
class Item:
    """One image to label: its decoded RGB pixels and the sample it comes from, with its rows of the tables."""

    image: Image.Image
    sample: LabeledSample

    @property
    def key(self) -> str:
        """The sample's key."""
        return self.sample.sample.key

    @property
    def alt_texts(self) -> list[str]:
        """The alt-text of the data's captions table, else that of the sample's JSON; [] for an image without any."""
        rows = [row["text"] for row in self.sample.captions if row["kind"] == "alt_text"]
        alt_text = self.sample.sample.meta.get("alt_text")
        return rows or ([alt_text] if isinstance(alt_text, str) else [])


@dataclass(frozen=True)
class Labels:
    """What a labeler says of one image.

    Attributes:
        rows: rows of the stage's table, by the contract's columns, without the key.
        refused: why the whole image cannot be used; "" when it can. A refused image has no rows.
        refused_items: reasons, one for each box or caption that was left out.
    """

    rows: Sequence[dict[str, Any]] = ()
    refused: str = ""
    refused_items: Sequence[str] = ()


class Labeler(Protocol):
    """Labels batches of images."""

    def label(self, batch: Sequence[Item]) -> Sequence[Labels]:
        """One `Labels` for each item, in order."""


@dataclass(frozen=True)
class Job:
    """What is to be labelled, read from where and written to where; plain values, so that processes can be given it.

    Attributes:
        stage: name of the stage, in quarantine and in messages.
        table: the table that is written.
        data: data set of the images.
        captions: where the captions table lies; "" for beside the images. Regions are read beside the images.
        output: root of the table that is written, and of the quarantine table.
        reads: tables that the labels depend on besides the images.
        required: those of them that must be there.
        config_hash: hash of the settings that the labels depend on.
        batch_size: images a batch.
        min_side, max_pixels: limits on images, pixels.
    """

    stage: str
    table: Table
    data: str
    captions: str
    output: str
    reads: tuple[Table, ...]
    required: tuple[Table, ...]
    config_hash: str
    batch_size: int
    min_side: int
    max_pixels: int

    def open(self) -> Dataset:
        """The data set with the tables that the job reads."""
        return Dataset.open(self.data, captions=self.captions or None)

    def input_hash(self, data: Dataset, shard: Shard) -> str:
        """Hash of what the shard's labels are made from: its tar and the tables joined to it.

        Raises:
            DataError: a required table is absent.
        """
        found = []
        for table in self.reads:
            storage = data.captions if table == "captions" else data.regions
            exists = tables.has_table(storage, table, shard.name)
            path = tables.table_path(table, shard.name)
            if not exists and table in self.required:
                raise DataError(
                    f"{self.stage}: shard {shard.name} of {self.data} has no {table} table ({storage.url}/{path}); "
                    f"make the {table} first"
                )
            found.append(hashlib.sha256(storage.read_bytes(path)).hexdigest() if exists else "")
        return fingerprint(shard.sha256, self.reads, found)


@dataclass
class _Found:
    """Rows of a shard's tables as they grow."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    quarantine: list[dict[str, Any]] = field(default_factory=list)


def run_job(
    job: Job, make_labeler: Callable[[], Labeler], *, processes: int, quarantine_limit: float, interval: float = 5.0
) -> Totals:
    """Labels every shard of a data set that is not labelled yet.

    Args:
        job: what is to be done.
        make_labeler: makes the backend; called only when there is something to do, in each process that works, so it
            must be picklable when `processes` is not 1.
        processes: processes over shards; 0 takes one a core. Use 1 for a model.
        quarantine_limit: largest share of quarantined images.
        interval: seconds between lines of progress.

    Returns:
        Statistics of all shards, those that stood already included.

    Raises:
        DataError: a shard is unreadable, or too large a share of the images had to be quarantined.
        ClocError: a process died.
    """
    data, totals = job.open(), Totals()
    output, shards = open_storage(job.output), data.manifest.shards
    if output.url.rstrip("/") == data.images.url.rstrip("/"):
        raise DataError(f"{job.stage}: the output {job.output} is the data set itself, whose tables it would overwrite")
    todo: list[Shard] = []
    with Progress(job.stage, data.manifest.images, len(shards), interval) as progress:
        for shard in shards:
            hashes = {"input_hash": job.input_hash(data, shard), "config_hash": job.config_hash}
            if tables.is_current(output, job.table, shard.name, **hashes):
                totals.add(_stats(job, output, shard, skipped=True))
                progress.skip(shard.images)
            else:
                todo.append(shard)
        _check_limit(job, totals, images=data.manifest.images, limit=quarantine_limit)
        workers = min(processes or len(os.sched_getaffinity(0)), len(todo))
        done = (
            _in_processes(job, make_labeler, todo, workers) if workers > 1 else _here(job, make_labeler, todo, progress)
        )
        for number, stats in enumerate(done, start=len(shards) - len(todo) + 1):
            totals.add(stats)
            progress.shard(number)
            if workers > 1:
                progress.advance(stats.images)
            # The limit is a share of the whole set: once it is passed, no later shard can mend it.
            _check_limit(job, totals, images=data.manifest.images, limit=quarantine_limit)
    return totals


def _here(
    job: Job, make_labeler: Callable[[], Labeler], shards: Sequence[Shard], progress: Progress
) -> Iterator[ShardStats]:
    if shards:
        data, labeler = job.open(), make_labeler()
        for shard in shards:
            yield label_shard(job, data, labeler, shard, advance=progress.advance)


def _in_processes(
    job: Job, make_labeler: Callable[[], Labeler], shards: Sequence[Shard], processes: int
) -> Iterator[ShardStats]:
    """Shards over spawned processes: a fork would copy the locks of running threads."""
    waiting = iter(shards)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        try:
            running = {
                pool.submit(_one_shard, job, make_labeler, shard) for shard in islice(waiting, processes * _READ_AHEAD)
            }
            while running:
                future = next(as_completed(running))
                running.remove(future)
                yield future.result()
                running |= {pool.submit(_one_shard, job, make_labeler, shard) for shard in islice(waiting, 1)}
        except BrokenProcessPool:
            raise ClocError(
                f"{job.stage}: a labelling process died (out of memory?); run again to go on, with fewer data.processes"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _one_shard(job: Job, make_labeler: Callable[[], Labeler], shard: Shard) -> ShardStats:
    return label_shard(job, job.open(), make_labeler(), shard)


def label_shard(
    job: Job, data: Dataset, labeler: Labeler, shard: Shard, *, advance: Callable[[int], None] = lambda images: None
) -> ShardStats:
    """Labels one shard and writes its tables; returns its statistics."""
    output, found = open_storage(job.output), _Found()
    input_hash = job.input_hash(data, shard)
    for batch in _batches(data.read(shard), job.batch_size):
        items: list[Item] = []
        for sample in batch:
            try:
                image = decode(sample.sample.image, min_side=job.min_side, max_pixels=job.max_pixels)
                items.append(Item(image, sample))
            except BadImageError as error:
                found.quarantine.append({"key": sample.sample.key, "stage": job.stage, "reason": str(error)})
        for item, labels in zip(items, labeler.label(items) if items else (), strict=True):
            _collect(job, item.key, labels, found)
        advance(len(batch))
    hashes = {"input_hash": input_hash, "config_hash": job.config_hash}
    # Quarantine first: the stage's own table is the commit that a rerun looks for.
    others = [row for row in _quarantine(output, shard) if row["stage"].partition("/")[0] != job.stage]
    tables.write_table(output, "quarantine", shard.name, [*others, *found.quarantine], **hashes)
    tables.write_table(output, job.table, shard.name, found.rows, **hashes)
    return _stats(job, output, shard)


def _collect(job: Job, key: str, labels: Labels, found: _Found) -> None:
    assert not (labels.refused and labels.rows), "a refused image has no rows"
    found.rows += [{"key": key, **row} for row in labels.rows]
    if labels.refused:
        found.quarantine.append({"key": key, "stage": job.stage, "reason": labels.refused})
    found.quarantine += [{"key": key, "stage": f"{job.stage}/item", "reason": why} for why in labels.refused_items]


def _batches(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _quarantine(storage: Storage, shard: Shard) -> list[dict[str, Any]]:
    if not tables.has_table(storage, "quarantine", shard.name):
        return []
    rows: list[dict[str, Any]] = tables.read_table(storage, "quarantine", shard.name).to_pylist()
    return rows


def _stats(job: Job, output: Storage, shard: Shard, *, skipped: bool = False) -> ShardStats:
    """Statistics from the tables as they stand, so that a skipped shard counts like a new one."""
    rows = tables.read_table(output, job.table, shard.name).to_pylist()
    return ShardStats.of(job.stage, rows, _quarantine(output, shard), images=shard.images, skipped=skipped)


def _check_limit(job: Job, totals: Totals, *, images: int, limit: float) -> None:
    if totals.quarantined > limit * images:
        reason, count = totals.reasons.most_common(1)[0]
        raise DataError(
            f"{job.stage}: {totals.quarantined} of {images} images of {job.data} had to be quarantined, more than "
            f"data.quarantine_limit {limit:g} allows; {count} of them: {reason} (all: {job.output}/quarantine)"
        )
