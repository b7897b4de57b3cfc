"""Processes that decode: each is given encoded samples and gives back whole batches, which come out in order.

A worker has a pipe and two buffers of pixels in shared memory, and takes every n-th batch. No lock is shared, so that a
worker that is killed leaves nothing locked: its pipe ends, which is how the parent learns of it. A parent that ends, in
whatever way, ends its workers.
"""

import contextlib
import ctypes
import math
import multiprocessing
import os
import queue
import threading
import traceback
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from cloc.data.batches import Batch, BatchMaker, BatchSettings, Drawn, Tokenize
from cloc.data.buffers import Buffers
from cloc.data.join import Labels
from cloc.data.processes import start_worker
from cloc.data.transforms import Pixels
from cloc.errors import ClocError, DataError

T = TypeVar("T")
_SLOTS = 2  # batches that a worker has been given and that are not yet taken
_PATIENCE = 0.2  # seconds between looks whether the batches are still wanted
_GRACE = 2.0  # seconds that a dead process may take to say what it died of


@dataclass(frozen=True)
class Task(Generic[T]):
    """What a batch is made of, and something that comes back with it."""

    samples: Sequence[Drawn[Any]]
    tag: T


@dataclass(frozen=True)
class _Failure:
    """What a worker failed by.

    Attributes:
        message: for the user, or the traceback of a defect.
        expected: whether it is for the user.
    """

    message: str
    expected: bool


def decoded(
    tasks: Generator[Task[T], None, None], settings: BatchSettings, *, tokenize: Tokenize, workers: int
) -> Generator[tuple[Batch, T], None, None]:
    """The batches of the tasks, in order, each with its task's tag.

    Args:
        tasks: read in a thread, `2 * workers` ahead; closed at the end.
        settings: what a batch is made like.
        tokenize: texts -> token ids; goes to the workers by pickle.
        workers: processes.

    Raises:
        DataError: an image cannot be decoded, or a worker died.
    """
    started, feeder, buffers = list[_Worker](), None, Buffers(settings.pixels_shape)
    try:
        for _ in range(workers):
            started.append(_Worker(settings, tokenize, buffers))
        feeder = _Feeder(tasks, started)
        for number, tag in enumerate(feeder.tags()):
            batch = started[number % workers].take(number // workers % _SLOTS)
            feeder.taken()
            yield batch, tag
    finally:
        # In this order: the feeder may be waiting for a worker to read, and uses its pipe.
        for worker in started:
            worker.kill()
        if feeder:
            feeder.stop()
        for worker in started:
            worker.close()


class _Feeder(Generic[T]):
    """A thread that hands tasks to the workers in turn, never more than they have buffers for."""

    def __init__(self, tasks: Generator[Task[T], None, None], workers: Sequence["_Worker"]) -> None:
        self._tasks, self._workers = tasks, workers
        self._permits = threading.Semaphore(_SLOTS * len(workers))
        self._given: queue.SimpleQueue[tuple[T] | BaseException | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._feed, daemon=True, name="feed-workers")
        self._thread.start()

    def tags(self) -> Iterable[T]:
        """The tag of each task that a worker has been given; raises what the tasks raised."""
        while (given := self._given.get()) is not None:
            if isinstance(given, BaseException):
                raise given
            yield given[0]

    def taken(self) -> None:
        """Tells that the oldest batch has been taken: its buffer is free."""
        self._permits.release()

    def stop(self) -> None:
        """Ends the thread; the workers must have been stopped."""
        self._stop.set()
        self._thread.join()

    def _feed(self) -> None:
        try:
            with closing(self._tasks):
                for number, task in enumerate(self._tasks):
                    while not self._permits.acquire(timeout=_PATIENCE) and not self._stop.is_set():
                        pass
                    if self._stop.is_set():
                        return
                    worker = self._workers[number % len(self._workers)]
                    worker.give(task.samples, slot=number // len(self._workers) % _SLOTS)
                    self._given.put((task.tag,))
            self._given.put(None)
        except BaseException as error:  # handed over, not swallowed
            self._given.put(error)


class _Worker:
    """A process that decodes, seen from its parent."""

    def __init__(self, settings: BatchSettings, tokenize: Tokenize, buffers: Buffers) -> None:
        # spawn: the parent has threads, which a fork would copy in the middle of their work.
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        size = math.prod(settings.pixels_shape)
        # In /dev/shm where that has room, else in a temporary file; both are gone from the file system at once.
        memory = context.RawArray(ctypes.c_uint8, _SLOTS * size)
        self._pixels, self._buffers = _slots(memory, settings), buffers
        self._process = context.Process(
            target=_work, args=(far, memory, settings, tokenize), daemon=True, name="cloc-decode"
        )
        self._process.start()
        far.close()

    def give(self, samples: Sequence[Drawn[Labels]], *, slot: int) -> None:
        """Sends what the next batch is made of."""
        with self._talking():
            self._pipe.send((slot, samples))

    def take(self, slot: int) -> Batch:
        """Waits for the oldest batch. Raises what the worker failed by."""
        with self._talking():
            answer = self._pipe.recv()
        if isinstance(answer, _Failure):
            if answer.expected:
                raise DataError(answer.message)
            raise RuntimeError(f"a process that decodes failed:\n{answer.message}")  # a defect: with its traceback
        keys, arrays = answer
        small = {name: torch.from_numpy(array) for name, array in arrays.items()}
        pixels_BSS3 = self._buffers.take()
        np.copyto(pixels_BSS3, self._pixels[slot])
        return Batch(keys=keys, pixels_BSS3=torch.from_numpy(pixels_BSS3), **small)

    def kill(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()

    def close(self) -> None:
        """Lets go of the pipe and of what the system keeps of the process."""
        self._pipe.close()
        self._process.close()

    @contextlib.contextmanager
    def _talking(self) -> Generator[None, None, None]:
        try:
            yield
        except (EOFError, OSError):
            raise DataError(f"train.workers: {self._end()}") from None

    def _end(self) -> str:
        self._process.join(_GRACE)
        code = self._process.exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"
        return (
            f"a process that decodes died ({how}; out of memory?); lower train.workers or train.shuffle_buffer and run "
            "the same command again: training goes on from its last checkpoint"
        )


def _slots(memory: Any, settings: BatchSettings) -> Pixels:
    """The buffers of a worker: (slots, B, S, S, 3)."""
    return np.frombuffer(memory, dtype=np.uint8).reshape(_SLOTS, *settings.pixels_shape)


def _work(pipe: Connection, memory: Any, settings: BatchSettings, tokenize: Tokenize) -> None:
    """A worker's life."""
    start_worker()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    maker, pixels = BatchMaker(settings, tokenize=tokenize), _slots(memory, settings)
    while True:
        try:
            slot, samples = pipe.recv()
        except EOFError:
            return
        try:
            batch = maker.make(samples, pixels_BSS3=pixels[slot])
        except ClocError as error:
            pipe.send(_Failure(str(error), expected=True))
        except BaseException:  # told, not swallowed
            pipe.send(_Failure(traceback.format_exc(), expected=False))
        else:
            # Their values alone, by pickle: tensors would travel by file descriptors that die with this process.
            arrays = {name: tensor.numpy() for name, tensor in batch.tensors().items() if name != "pixels_BSS3"}
            pipe.send((batch.keys, arrays))
