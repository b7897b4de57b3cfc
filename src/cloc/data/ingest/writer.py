"""The writer of an ingest: records into shards, several at a time, and the manifest last.

Shards come out the same whatever the number of processes. A run that was killed goes on by running it again: finished
shards are skipped (`pack`), and a data set without a manifest is unfinished.
"""

import itertools
import json
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from cloc.config.schema import DataConfig
from cloc.data.dataset import write_manifest
from cloc.data.ingest.pack import Limits, PackReport, PackTask, pack_shard, stats_path
from cloc.data.ingest.parts import Source
from cloc.data.schema import MANIFEST, Manifest, Shard
from cloc.data.storage import Storage, open_storage
from cloc.data.tables import table_path
from cloc.errors import DataError

TOOL = "cloc data ingest"
_HEARTBEAT_S = 8.0
_POLL_S = 2.0


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
        """Quarantined images over all that the source named."""
        return self.counts["quarantined"] / (self.counts["images"] + self.counts["quarantined"])


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
    )
    tasks = _tasks(source, output=output, limits=limits)
    reports = list(_run(tasks, processes=_processes(settings)))
    counts: Counter[str] = Counter()
    for report in reports:
        counts.update(report.counts)
    shards = tuple(report.shard for report in reports if report.shard is not None)
    counts["shards"] = len(shards)
    counts["skipped_shards"] = sum(report.skipped for report in reports)
    _check_quarantine(reports, counts, output=output, limit=settings.quarantine_limit)
    _remove_leftovers(storage, keep={_shard_name(index) for index in range(len(reports))})
    manifest = _manifest(source, shards, quarantined=counts["quarantined"], settings=settings)
    write_manifest(storage, manifest)
    return IngestReport(manifest=manifest, counts={name: counts[name] for name in _COUNTS})


_COUNTS = (
    *("images", "quarantined", "reencoded", "captions", "quarantined_captions"),
    *("regions", "quarantined_boxes", "clipped_boxes", "crowd_boxes", "shards", "skipped_shards"),
)


def _tasks(source: Source, *, output: str, limits: Limits) -> Iterator[PackTask]:
    for index, part in enumerate(source.parts):
        yield PackTask(shard=_shard_name(index), part=part, output=output, limits=limits)


def _shard_name(index: int) -> str:
    return f"{index:05d}"


def _processes(settings: DataConfig) -> int:
    return settings.processes or len(os.sched_getaffinity(0))


def _run(tasks: Iterator[PackTask], *, processes: int) -> Iterator[PackReport]:
    """Reports in the order of the tasks."""
    head = list(itertools.islice(tasks, 2))
    if processes == 1 or len(head) < 2:
        progress = _Progress()
        for task in itertools.chain(head, tasks):
            yield progress.add(pack_shard(task, tick=progress.tick))
        progress.close()
    else:
        yield from _run_parallel(itertools.chain(head, tasks), processes=processes)


def _run_parallel(tasks: Iterator[PackTask], *, processes: int) -> Iterator[PackReport]:
    progress = _Progress()
    reports: dict[int, PackReport] = {}
    pending: dict[Future[PackReport], int] = {}
    numbered = enumerate(tasks)
    # spawn: the caller may have threads (a tracking client), which a fork would copy in the middle of their work.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker) as pool:
        try:
            while True:
                # A bounded window: the records of all shards never wait in memory together.
                for index, task in itertools.islice(numbered, 2 * processes - len(pending)):
                    pending[pool.submit(pack_shard, task)] = index
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


def _start_worker() -> None:
    """Ends the worker with its parent: one that is killed outright would leave its workers waiting for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


class _Progress:
    """Lines on the console, at most 10 s apart while work goes on."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._shards = self._images = 0

    def add(self, report: PackReport) -> PackReport:
        self._shards += 1
        self._images += report.counts["images"] + report.counts.get("quarantined", 0)
        return report

    def tick(self, images: int) -> None:
        self.beat(f"{images} images of shard {_shard_name(self._shards)}")

    def beat(self, now: str) -> None:
        if time.monotonic() - self._last >= _HEARTBEAT_S:
            self._print(now)

    def close(self) -> None:
        self._print("done")

    def _print(self, now: str) -> None:
        self._last = time.monotonic()
        seconds = self._last - self._start
        print(f"ingest: {self._images} images in {self._shards} shards, {now}, {seconds:.0f} s", flush=True)


def _check_output(storage: Storage) -> None:
    if not storage.exists(MANIFEST):
        return
    manifest = Manifest.from_json(storage.read_bytes(MANIFEST).decode(), source=f"{storage.url}/{MANIFEST}")
    maker = manifest.made_by.get("tool")
    if maker != TOOL:
        raise DataError(f"{storage.url}: holds a data set made by {maker!r}; choose another folder or remove it first")


def _check_quarantine(reports: list[PackReport], counts: Mapping[str, int], *, output: str, limit: float) -> None:
    refused = counts["quarantined"]
    total = refused + counts["images"]
    if not total:
        raise DataError("ingest: the source has no images")
    example = next((report.example for report in reports if report.example), "")
    if refused / total > limit or not counts["images"]:
        raise DataError(
            f"ingest: {refused} of {total} images ({refused / total:.1%}) had to be quarantined, more than "
            f"data.quarantine_limit {limit:.1%} allows; first: {example}; all: {output}/quarantine"
        )


def _remove_leftovers(storage: Storage, *, keep: set[str]) -> None:
    """Removes shards of an earlier ingest into the same place that this one does not have."""
    names = {path.removeprefix("stats/").removesuffix(".json") for path in storage.list("stats")}
    if names - keep:
        storage.delete(MANIFEST)  # it may name them
    for name in sorted(names - keep):
        for path in (
            stats_path(name),
            f"images/{name}.tar",
            table_path("captions", name),
            table_path("regions", name),
            table_path("quarantine", name),
        ):
            storage.delete(path)


def _manifest(source: Source, shards: tuple[Shard, ...], *, quarantined: int, settings: DataConfig) -> Manifest:
    limits = {
        name: getattr(settings, name) for name in ("images_per_shard", "bytes_per_shard", "min_side", "max_pixels")
    }
    made_by: dict[str, Any] = {"tool": TOOL, "source": source.kind, **source.details, **limits}
    json.dumps(made_by)  # the manifest is JSON: fail here, where the culprit is known
    return Manifest(shards=shards, quarantined=quarantined, classes=source.classes, made_by=made_by)
