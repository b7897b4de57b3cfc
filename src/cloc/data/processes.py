"""Worker processes: how many there are, how they start, and that none outlives the one that started it."""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor


def processes_of(setting: int) -> int:
    """How many processes a setting means; 0 takes one a core that this process may use."""
    return setting or len(os.sched_getaffinity(0))


def worker_pool(processes: int) -> ProcessPoolExecutor:
    """A pool of fresh processes: a fork would copy the caller's threads and locks in the middle of their work."""
    return ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"), initializer=start_worker)


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
