"""A labelling job over the shards of a data set: what is missing is planned, done in one or several processes, counted.

The work splits over machines by shards, without anybody in the middle: worker i of n takes every n-th shard of a range,
and whoever runs last without a selection finds all of them done and reports on the whole set.
"""

import multiprocessing
import os
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import Any, TypeVar

from cloc.data import tables
from cloc.data.dataset import Dataset
from cloc.data.processes import end_with_parent, processes_of
from cloc.data.schema import Shard
from cloc.data.selection import ALL, Selection
from cloc.data.storage import Storage, open_storage
from cloc.errors import ClocError, DataError
from cloc.labeling.progress import Progress
from cloc.labeling.statistics import ShardStats, Totals
from cloc.labeling.worker import Job, Labeler, Worker

PROCESS_VARIABLE = "CLOC_WORKER_PROCESS"
"""Number of the process among those of a job, from 0: it takes the GPU of that number."""

_PLANNING_THREADS = 16  # a look at a table on S3 is a few round trips
_MOST_DECODE_THREADS = 8
_POLL = 0.5  # seconds between looks whether a process died
T = TypeVar("T")


@dataclass(frozen=True)
class JobResult:
    """What a job came to.

    Attributes:
        totals: statistics of the selected shards, those that stood already included.
        shards: name and statistics of each, in order.
        all_shards: number of shards of the data set.
        images_per_second: of the images labelled now.
        data_wait: share of the labeler's time in which it waited for images.
    """

    totals: Totals
    shards: Sequence[tuple[str, ShardStats]]
    all_shards: int
    images_per_second: float
    data_wait: float

    @property
    def share(self) -> str:
        """For a message: which part of the data set this is about; "" for all of it."""
        chosen = len(self.shards)
        return "" if chosen == self.all_shards else f" (in {chosen} of {self.all_shards} shards)"

    @property
    def speed(self) -> dict[str, float]:
        """How fast it went, for metrics; nothing when there was nothing to do."""
        if self.totals.skipped == self.totals.images:
            return {}
        return {"images_per_second": self.images_per_second, "data_wait_share": self.data_wait}


def decode_threads(setting: int) -> int:
    """Threads that `data.decode_threads` means; 0 takes one a core, at most eight."""
    return setting or min(len(os.sched_getaffinity(0)), _MOST_DECODE_THREADS)


def run_job(
    job: Job,
    make_labeler: Callable[[], Labeler[Any]],
    *,
    processes: int,
    quarantine_limit: float,
    selection: Selection = ALL,
    interval: float = 5.0,
) -> JobResult:
    """Labels every selected shard of a data set that is not labelled yet.

    Args:
        job: what is to be done.
        make_labeler: makes the backend; called only when there is something to do, once in each process that works, so
            it must be picklable when `processes` is not 1.
        processes: processes over shards; 0 takes one a core.
        quarantine_limit: largest share of quarantined images.
        selection: which shards.
        interval: seconds between lines of progress.

    Raises:
        DataError: a shard is unreadable, or too large a share of the images had to be quarantined.
        ClocError: a process died.
    """
    data, totals = job.open(), Totals()
    output, shards = open_storage(job.output), selection.of(data.manifest.shards)
    if output.url.rstrip("/") == data.images.url.rstrip("/"):
        raise DataError(f"{job.stage}: the output {job.output} is the data set itself, whose tables it would overwrite")
    images = sum(shard.images for shard in shards)
    found: dict[str, ShardStats] = {}
    with Progress(job.stage, images, len(shards), job.table, interval) as progress:
        for shard, stats in _standing(job, data, output, shards):
            if stats is not None:
                found[shard.name] = stats
                totals.add(stats, skipped=True)
                progress.skip(shard.images)
        _check_limit(job, totals, images=images, limit=quarantine_limit)
        todo = [shard for shard in shards if shard.name not in found]
        workers = min(processes_of(processes), len(todo))
        done = _in_processes if workers > 1 else _here
        for name, stats in done(job, make_labeler, todo, workers, progress):
            found[name] = stats
            totals.add(stats)
            progress.shard()
            # The limit is a share of the whole set: once it is passed, no later shard can mend it.
            _check_limit(job, totals, images=images, limit=quarantine_limit)
    return JobResult(
        totals=totals,
        shards=[(shard.name, found[shard.name]) for shard in shards],
        all_shards=len(data.manifest.shards),
        images_per_second=progress.images_per_second,
        data_wait=progress.data_wait,
    )


def _standing(
    job: Job, data: Dataset, output: Storage, shards: Sequence[Shard]
) -> Iterator[tuple[Shard, ShardStats | None]]:
    """Each shard with the statistics of its table, where that stands and is made from what is there now."""

    def look(shard: Shard) -> ShardStats | None:
        hashes = (job.input_hash(data, shard), job.config_hash)
        info = tables.table_info(output, job.table, shard.name)
        if info is None or (info.input_hash, info.config_hash) != hashes or not info.statistics:
            return None
        return ShardStats.from_json(info.statistics)

    with ThreadPoolExecutor(_PLANNING_THREADS, thread_name_prefix="plan") as pool:
        yield from zip(shards, pool.map(look, shards), strict=True)


def _here(
    job: Job, make_labeler: Callable[[], Labeler[Any]], shards: Sequence[Shard], processes: int, progress: Progress
) -> Iterator[tuple[str, ShardStats]]:
    if shards:
        yield from Worker(job, make_labeler(), watch=progress).label(shards)


def _in_processes(
    job: Job, make_labeler: Callable[[], Labeler[Any]], shards: Sequence[Shard], processes: int, progress: Progress
) -> Iterator[tuple[str, ShardStats]]:
    """Shards over spawned processes, each of which takes the next one: a fork would copy the locks of threads."""
    context = get_context("spawn")
    shared = _Shared(
        job=replace(job, threads=max(1, job.threads // processes)),
        shards=shards,
        next_shard=context.Value("q", 0),
        next_process=context.Value("q", 0),
        threads=max(1, len(os.sched_getaffinity(0)) // processes),
        messages=context.Queue(),
    )
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_set_up, initargs=(shared,)) as pool:
        running = [pool.submit(_work, make_labeler) for _ in range(processes)]
        try:
            written = 0
            while written < len(shards):
                _raise_failure(job, running)
                try:
                    message = shared.messages.get(timeout=_POLL)
                except queue.Empty:
                    continue
                progress.advance(message.images, message.rows)
                progress.time(waited=message.waited, worked=message.worked)
                if message.stats is not None:
                    written += 1
                    yield message.shard, message.stats
        finally:
            with shared.next_shard.get_lock():
                shared.next_shard.value = len(shards)  # nobody takes another


@dataclass(frozen=True)
class _Message:
    """What a process tells: progress, or a shard that is written."""

    images: int = 0
    rows: int = 0
    waited: float = 0.0
    worked: float = 0.0
    shard: str = ""
    stats: ShardStats | None = None


@dataclass(frozen=True)
class _Shared:
    """What the processes of a job share."""

    job: Job
    shards: Sequence[Shard]
    next_shard: Any
    next_process: Any
    threads: int
    messages: "multiprocessing.Queue[_Message]"

    def advance(self, images: int, rows: int = 0) -> None:
        """See `worker.Watch`."""
        self.messages.put(_Message(images=images, rows=rows))

    def time(self, *, waited: float, worked: float) -> None:
        """See `worker.Watch`."""
        self.messages.put(_Message(waited=waited, worked=worked))

    def take(self) -> Iterator[Shard]:
        """The shards that this process works on: the next one that nobody took, until there is none."""
        while True:
            with self.next_shard.get_lock():
                number = self.next_shard.value
                self.next_shard.value = number + 1
            if number >= len(self.shards):
                return
            yield self.shards[number]


@dataclass
class _Process:
    """What a spawned process was given when it began."""

    shared: _Shared | None = field(default=None)


_PROCESS = _Process()


def _set_up(shared: _Shared) -> None:
    end_with_parent()
    _PROCESS.shared = shared
    with shared.next_process.get_lock():
        os.environ[PROCESS_VARIABLE] = str(shared.next_process.value)
        shared.next_process.value += 1
    # Before torch is imported: processes with a thread a core each would stand in each other's way.
    os.environ.setdefault("OMP_NUM_THREADS", str(shared.threads))


def _work(make_labeler: Callable[[], Labeler[Any]]) -> None:
    shared = _PROCESS.shared
    assert shared is not None
    worker = Worker(shared.job, make_labeler(), watch=shared)
    for name, stats in worker.label(shared.take()):
        shared.messages.put(_Message(shard=name, stats=stats))


def _raise_failure(job: Job, running: Sequence[Future[None]]) -> None:
    """Raises what a process failed by."""
    for future in running:
        try:
            if future.done():
                future.result()
        except BrokenProcessPool:
            raise ClocError(
                f"{job.stage}: a labelling process died (out of memory?); run again to go on, with fewer processes"
            ) from None


def _check_limit(job: Job, totals: Totals, *, images: int, limit: float) -> None:
    if totals.quarantined > limit * images:
        reason, count = totals.reasons.most_common(1)[0]
        raise DataError(
            f"{job.stage}: {totals.quarantined} of {images} images of {job.data} had to be quarantined, more than "
            f"data.quarantine_limit {limit:g} allows; {count} of them: {reason} (all: {job.output}/quarantine)"
        )
