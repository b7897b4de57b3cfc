"""Worker processes: how many there are, how they start, and that none outlives the one that started it."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from cloc.errors import ClocError

_AHEAD = 2  # items a process that are given out before they are asked for

T = TypeVar("T")
R = TypeVar("R")


def processes_of(setting: int) -> int:
    """How many processes a setting means; 0 takes one a core that this process may use."""
    return setting or len(os.sched_getaffinity(0))


def worker_pool(
    processes: int, *, begin: Callable[..., None] | None = None, given: tuple[Any, ...] = ()
) -> ProcessPoolExecutor:
    """A pool of fresh processes: a fork would copy the caller's threads and locks in the middle of their work.

    Args:
        processes: how many at most.
        begin: what each calls before its first work, with what it is `given`.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=(begin, given))


def in_order(work: Callable[[T], R], items: Sequence[T], *, processes: int, what: str, setting: str) -> Iterator[R]:
    """Results of items in their order, by several processes where there are several items; few are under way at once,
    so that results do not pile up.

    Args:
        work: what is done with an item, by a process that knows nothing else.
        items: what to do.
        processes: how many at most; 1 works in this one.
        what: the stage, for errors.
        setting: that says how many processes.

    Raises:
        ClocError: a process died.
    """
    workers = min(processes, len(items))
    if workers <= 1:
        yield from map(work, items)
        return
    waiting: deque[Future[R]] = deque()
    with worker_pool(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= _AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise ClocError(
                f"{what}: a process died (killed, perhaps for want of memory); set {setting} lower and run again"
            ) from None
        finally:
            # Cancelled one by one, futures that nobody has taken up can leave the pool waiting for them for ever.
            pool.shutdown(cancel_futures=True)


def _start(begin: Callable[..., None] | None, given: tuple[Any, ...]) -> None:
    start_worker()
    if begin is not None:
        begin(*given)


def start_worker() -> None:
    """The first thing that a worker does: Ctrl-C is its parent's to handle, whose end is its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """Ends this worker with its parent: one that is killed outright would leave its workers waiting for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True, name="follow-parent").start()
