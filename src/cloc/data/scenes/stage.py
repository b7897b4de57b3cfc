"""Stage `scenes`: writes the demo collection, a folder with one data set (by the data contract) a split.

    train         the bulk
    seed          a labelled seed, for models that label
    val, test     the same kinds and pairs; choices are made on the first, the second is reported
    unseen_pairs  only pairs of a trained kind and a tint that the others never show
    unseen_kinds  only kinds that the others never show
    classes       no split: a classification set (`classes`), where settings ask for it

A shard is written whole by one process. A killed run goes on at its first missing shard; a finished one is skipped.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass

from cloc.config import Config
from cloc.data.dataset import Dataset, write_manifest
from cloc.data.processes import processes_of, worker_pool
from cloc.data.scenes.classes import FOLDER, write_classes
from cloc.data.scenes.splits import SPLITS, ShardJob, ShardReport, shard_jobs, write_shard
from cloc.data.scenes.vocabulary import KINDS, TRAINED_KINDS, UNSEEN_KINDS, unseen_pairs
from cloc.data.schema import MANIFEST, Manifest
from cloc.data.storage import open_storage
from cloc.data.tables import has_table
from cloc.stage import StageResult, fingerprint

STAGE = "scenes"
_PROGRESS_EVERY = 5.0  # seconds


@dataclass(frozen=True)
class Inputs:
    """Nothing: the pictures are made."""


@dataclass(frozen=True)
class Outputs:
    """Where the collection goes.

    Attributes:
        data: folder or `s3://` prefix.
    """

    data: str


def run(config: Config, *, inputs: Inputs, outputs: Outputs) -> StageResult:
    """Writes the collection.

    Raises:
        ClocError: the icon font is not installed.
        DataError: the storage cannot be used.
    """
    del inputs
    started = time.monotonic()
    root = outputs.data.rstrip("/")
    plans = {split: _jobs(config, root, split) for split in SPLITS if _images(config, split)}
    finished = [split for split, jobs in plans.items() if _is_finished(jobs)]
    todo = {split: jobs for split, jobs in plans.items() if split not in finished}
    for jobs in todo.values():
        _invalidate(jobs)
    reports = _write_all([job for jobs in todo.values() for job in jobs], processes=processes_of(config.data.processes))
    for split, jobs in todo.items():
        shards = tuple(reports[job].shard for job in jobs)
        manifest = Manifest(shards=shards, classes=tuple(kind.name for kind in KINDS), made_by=_made_by(split, jobs))
        write_manifest(open_storage(jobs[0].url), manifest)
    scenes = config.data.scenes
    if scenes.class_images:
        place = open_storage(f"{root}/{FOLDER}")
        write_classes(place, images=scenes.class_images, seed=scenes.seed, image_size=scenes.image_size)
    made = [report for report in reports.values() if not report.reused]
    images = sum(report.shard.images for report in made)
    total = sum(_images(config, split) for split in plans)
    seconds = time.monotonic() - started
    message = f"{total} pictures in {len(plans)} splits at {root} ({images} rendered, {total - images} already there)"
    counts = {"images": total, "rendered": images, "shards": sum(map(len, plans.values()))}
    speed = {"speed/images_per_second": images / seconds} if images else {}
    return StageResult(stage=STAGE, metrics=speed, counts=counts, message=message, artifacts={"data": root})


def _images(config: Config, split: str) -> int:
    return int(getattr(config.data.scenes, f"{split}_images"))


def _jobs(config: Config, root: str, split: str) -> list[ShardJob]:
    return shard_jobs(
        f"{root}/{split}",
        split,
        images=_images(config, split),
        images_per_shard=config.data.images_per_shard,
        scenes=config.data.scenes,
    )


def _made_by(split: str, jobs: Sequence[ShardJob]) -> dict[str, object]:
    return {
        "tool": "cloc data scenes",
        "split": split,
        "seed": jobs[0].seed,
        "image_size": jobs[0].image_size,
        "closeup_share": jobs[0].closeup_share,
        "trained_kinds": [kind.name for kind in TRAINED_KINDS],
        "unseen_kinds": [kind.name for kind in UNSEEN_KINDS],
        "unseen_pairs": [f"{tint.name} {kind.name}" for kind, tint in unseen_pairs()],
        "config_hash": _hash(jobs),
    }


def _hash(jobs: Sequence[ShardJob]) -> str:
    return fingerprint([job.config_hash for job in jobs])


def _is_finished(jobs: Sequence[ShardJob]) -> bool:
    """Whether the split's manifest is that of these jobs and everything it names is there."""
    storage = open_storage(jobs[0].url)
    if not storage.exists(MANIFEST):
        return False
    manifest = Dataset.open(jobs[0].url).manifest
    if manifest.made_by.get("config_hash") != _hash(jobs):
        return False
    return all(
        storage.exists(shard.path)
        and has_table(storage, "captions", shard.name)
        and has_table(storage, "regions", shard.name)
        and has_table(storage, "fingerprints", shard.name)
        and job.asked(storage, shard)
        for job, shard in zip(jobs, manifest.shards, strict=True)
    )


def _invalidate(jobs: Sequence[ShardJob]) -> None:
    """Empties the manifest of other settings, so that nobody reads its shards while they are replaced."""
    storage = open_storage(jobs[0].url)
    if storage.exists(MANIFEST):
        write_manifest(storage, Manifest(shards=(), made_by={"tool": "cloc data scenes", "unfinished": True}))


@contextmanager
def _executor(workers: int) -> Iterator[Executor]:
    """Runs jobs in `workers` fresh processes, or beside this thread for one. Jobs not begun are dropped on error."""
    executor: Executor = worker_pool(workers) if workers > 1 else ThreadPoolExecutor(1)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def _write_all(jobs: Sequence[ShardJob], *, processes: int) -> dict[ShardJob, ShardReport]:
    """Writes shards, in parallel, and prints progress every few seconds."""
    started, total = time.monotonic(), sum(job.stop - job.start for job in jobs)
    reports: dict[ShardJob, ShardReport] = {}
    with _executor(min(processes, len(jobs))) as executor:
        futures: dict[Future[ShardReport], ShardJob] = {executor.submit(write_shard, job): job for job in jobs}
        waiting = set(futures)
        printed = started
        while waiting:
            done, waiting = wait(waiting, timeout=_PROGRESS_EVERY, return_when="FIRST_COMPLETED")
            reports.update({futures[future]: future.result() for future in done})
            if time.monotonic() - printed >= _PROGRESS_EVERY or not waiting:
                printed = time.monotonic()
                images = sum(report.shard.images for report in reports.values())
                print(f"scenes: {images} of {total} pictures after {printed - started:.0f} s", flush=True)
    return reports
