"""A training that stands still says where: the stacks of all threads, of every rank."""

import faulthandler
import sys
import threading
import time
from types import TracebackType

# The first step compiles, reads the first shards and meets the other ranks.
_FIRST = 3.0
_GROWTH = 2.0


class Watchdog:
    """Prints a line and the stacks of this process when no step is done for a while; again after twice the time, and so
    on. Use it as a context. It only looks: what ends a rank that hangs is `train.timeout_seconds`.

    A thread does it. Where it cannot, since the thread that hangs keeps the interpreter's lock, the stacks are printed
    by `faulthandler`'s own timer (without the line) a little later.

    Args:
        rank: number of this process.
        seconds: how long a step may take; three times as long at the start. 0 watches nothing.
    """

    def __init__(self, rank: int, *, seconds: float) -> None:
        self._rank, self._seconds = rank, seconds
        self._step, self._beaten, self._limit = -1, time.monotonic(), seconds * _FIRST
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            self._beaten = time.monotonic()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._seconds:
            self._over.set()
            self._thread.join()

    def beat(self, step: int) -> None:
        """Tells that a step is done (or that what else takes long is: it is the same step then)."""
        self._step, self._limit, self._beaten = step, self._seconds, time.monotonic()

    def _watch(self) -> None:
        while True:
            # The timer goes off where this thread does not come back to set it anew.
            left = self._beaten + self._limit - time.monotonic()
            faulthandler.dump_traceback_later(max(left, 0) + self._seconds, file=sys.stderr)
            if self._over.wait(min(max(left, 0), self._seconds)):
                break
            waited = time.monotonic() - self._beaten
            if waited >= self._limit:
                self._say(waited)
        faulthandler.cancel_dump_traceback_later()

    def _say(self, waited: float) -> None:
        self._limit = waited * _GROWTH
        after = "before the first step" if self._step < 0 else f"after step {self._step}"
        print(
            f"rank {self._rank} stands still: no step for {waited:.0f} s {after} (train.stall_seconds "
            f"{self._seconds:g}); the stacks of its threads:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        sys.stderr.flush()
