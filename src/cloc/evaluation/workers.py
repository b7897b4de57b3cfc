"""Shards spread over processes: each has the models, takes the next shard, and writes its features into the cache.

Few images are encoded in this process, by its threads: processes take seconds to begin. No worker outlives this
process, however that ends, and what is done is kept: run again to go on.
"""

import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

import torch

from cloc.data.processes import worker_pool
from cloc.errors import ClocError
from cloc.evaluation.cache import FeatureCache
from cloc.evaluation.encoding import encode, encoders
from cloc.evaluation.models import EvaluatedModel, load_models
from cloc.evaluation.tasks import Task

_FEW = 2000  # images that are not worth several processes
_THREADS = 4  # cores of a process, where there are many
_EVERY = 5.0  # seconds between lines of progress
_POLL = 0.5


@dataclass(frozen=True)
class Work:
    """A task, and the keys of the features that it lacks, by model."""

    task: Task
    keys: dict[str, str]


class Progress:
    """A line every few seconds."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._start = self._told = time.monotonic()

    def tell(self, images: int) -> None:
        """Counts images that are done."""
        self._done += images
        now = time.monotonic()
        if now - self._told >= _EVERY or (images and self._done >= self._total):
            self._told = now
            done = min(self._done, self._total)
            print(
                f"evaluation: {self._what}: {done} of {self._total} images, {now - self._start:.0f} s",
                flush=True,
            )


def processes_for(setting: int, *, images: int, tasks: int, device: torch.device) -> int:
    """How many processes encode.

    Args:
        setting: `evaluation.workers`.
        images, tasks: how much there is to do.
        device: where models run.
    """
    if setting or images < _FEW:
        return max(1, min(setting, tasks))
    many = torch.cuda.device_count() if device.type == "cuda" else len(os.sched_getaffinity(0)) // _THREADS
    return max(1, min(many, tasks))


def encode_all(
    work: Sequence[Work],
    models: Sequence[EvaluatedModel],
    cache: FeatureCache,
    *,
    batch_size: int,
    workers: int,
    what: str,
) -> None:
    """Encodes everything that is lacking, into the cache.

    Args:
        work: tasks, with the models that lack them.
        models: all models.
        cache: gets the features.
        batch_size: images a batch.
        workers: `evaluation.workers`.
        what: the name of the work, for lines of progress.

    Raises:
        DataError: a shard is broken.
        ClocError: a worker died.
    """
    images = sum(item.task.count for item in work)
    progress = Progress(what, images)
    count = processes_for(workers, images=images, tasks=len(work), device=models[0].device)
    if count > 1:
        setup = _Setup.of(models, cache, batch_size=batch_size, processes=count)
        _in_processes(work, setup, count, progress)
        return
    by_name = {model.name: model for model in models}
    with encoders(models[0].device) as pool:
        for item in work:
            _encode(item, by_name, cache, pool, batch_size=batch_size, tell=progress.tell)


def _encode(
    item: Work, models: Mapping[str, EvaluatedModel], cache: FeatureCache, pool: Any, *, batch_size: int, tell: Any
) -> None:
    chosen = [models[name] for name in item.keys]
    found = encode(item.task, chosen, pool, batch_size=batch_size, tell=tell)
    for key, features in zip(item.keys.values(), found, strict=True):
        cache.put(key, features.to_arrays())


@dataclass(frozen=True)
class _Setup:
    """What a worker is given when it begins.

    Attributes:
        sources, readers: of the models.
        cache: its URL.
        batch_size: images a batch.
        threads: of a worker.
        device: "cpu" or "cuda".
        begun: workers that have begun; images: that are done.
    """

    sources: Mapping[str, str]
    readers: Sequence[str]
    cache: str
    batch_size: int
    threads: int
    device: str
    begun: Any
    images: Any

    @classmethod
    def of(cls, models: Sequence[EvaluatedModel], cache: FeatureCache, *, batch_size: int, processes: int) -> "_Setup":
        context = multiprocessing.get_context("spawn")
        return cls(
            sources={model.name: model.source for model in models},
            readers=sorted({reader for model in models for reader in model.readers}),
            cache=cache.url,
            batch_size=batch_size,
            threads=max(1, len(os.sched_getaffinity(0)) // processes),
            device=models[0].device.type,
            begun=context.Value("q", 0),
            images=context.Value("q", 0),
        )


@dataclass
class _Worker:
    """What a worker has: the setup from its beginning, the models from its first shard on."""

    setup: _Setup | None = None
    models: dict[str, EvaluatedModel] = field(default_factory=dict)


_WORKER = _Worker()


def _begin(setup: _Setup) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    _WORKER.setup = setup


def _work(item: Work) -> None:
    setup = _WORKER.setup
    assert setup is not None
    if not _WORKER.models:
        with setup.begun.get_lock():
            number = setup.begun.value
            setup.begun.value += 1
        device = f"cuda:{number % torch.cuda.device_count()}" if setup.device == "cuda" else "cpu"
        loaded = load_models(setup.sources, device=device, readers=setup.readers)
        _WORKER.models = {model.name: model for model in loaded}

    def tell(images: int) -> None:
        with setup.images.get_lock():
            setup.images.value += images

    used = next(iter(_WORKER.models.values())).device
    with encoders(used, threads=setup.threads) as pool:
        _encode(item, _WORKER.models, FeatureCache(setup.cache), pool, batch_size=setup.batch_size, tell=tell)


def _in_processes(work: Sequence[Work], setup: _Setup, processes: int, progress: Progress) -> None:
    before, told = set(multiprocessing.active_children()), 0
    with worker_pool(processes, begin=_begin, given=(setup,)) as pool:
        try:
            pending: set[Future[None]] = {pool.submit(_work, item) for item in work}
            while pending:
                done, pending = wait(pending, timeout=_POLL, return_when=FIRST_COMPLETED)
                now = int(setup.images.value)
                progress.tell(now - told)
                told = now
                for future in done:
                    future.result()
        except BrokenProcessPool:
            raise ClocError(
                "evaluation: a worker process died (out of memory?); run again to go on, with fewer evaluation.workers "
                "or a smaller evaluation.batch_size"
            ) from None
        except BaseException:
            # Nobody waits for shards that are under way: their features are made again.
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - before:
                child.kill()
            raise
