"""Shards of an ingest made several at a time, with lines on the console that say how far it is."""

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol

from cloc.data.ingest.finished import ShardReport
from cloc.data.processes import worker_pool
from cloc.errors import DataError

_HEARTBEAT_S = 8.0
_POLL_S = 2.0


class Task(Protocol):
    """One shard to make: a value that can be pickled."""

    def make(self, *, tick: Callable[[int], None] | None = None) -> ShardReport:
        """Makes it, or finds it made; `tick` is called with the number of images done."""


def run_tasks(tasks: Iterator[Task], *, processes: int) -> Iterator[ShardReport]:
    """Makes shards and gives their reports in the order of the tasks.

    Args:
        tasks: values that can be pickled; taken as they are needed.
        processes: 1 works in this one.

    Raises:
        DataError: a shard cannot be made, or a worker process died.
    """
    head = list(itertools.islice(tasks, 2))
    if processes == 1 or len(head) < 2:
        progress = _Progress()
        for task in itertools.chain(head, tasks):
            yield progress.add(task.make(tick=progress.tick))
        progress.close()
    else:
        yield from _run_parallel(itertools.chain(head, tasks), processes=processes)


def _run_parallel(tasks: Iterator[Task], *, processes: int) -> Iterator[ShardReport]:
    progress = _Progress()
    reports: dict[int, ShardReport] = {}
    pending: dict[Future[ShardReport], int] = {}
    numbered = enumerate(tasks)
    with worker_pool(processes) as pool:
        try:
            while True:
                # A bounded window: the records of all shards never wait in memory together.
                for index, task in itertools.islice(numbered, 2 * processes - len(pending)):
                    pending[pool.submit(task.make)] = index
                if not pending:
                    break
                done, _ = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                for future in done:
                    reports[pending.pop(future)] = progress.add(future.result())
                progress.beat(f"{len(pending)} shards under way")
        except BrokenProcessPool:
            raise DataError(
                "ingest: a worker process died (out of memory?); lower data.processes or data.images_per_shard "
                "and run the same command again: finished shards are kept"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    progress.close()
    for index in range(len(reports)):
        yield reports[index]


class _Progress:
    """Lines on the console, at most 10 s apart while work goes on."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._shards = self._images = 0

    def add(self, report: ShardReport) -> ShardReport:
        self._shards += 1
        self._images += report.counts["images"] + report.counts.get("quarantined", 0)
        return report

    def tick(self, images: int) -> None:
        self.beat(f"{images} images of shard {self._shards:05d}")

    def beat(self, now: str) -> None:
        if time.monotonic() - self._last >= _HEARTBEAT_S:
            self._print(now)

    def close(self) -> None:
        self._print("done")

    def _print(self, now: str) -> None:
        self._last = time.monotonic()
        seconds = self._last - self._start
        print(f"ingest: {self._images} images in {self._shards} shards, {now}, {seconds:.0f} s", flush=True)
