"""What the threads that ask one endpoint share: when the next request may go, and whether asking makes sense at all."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cloc.errors import ClocError

KEY = "captioning.endpoint"
_FAILURES_IN_A_ROW = 8


class Gate:
    """Lets requests through at a rate: a token bucket that holds the tokens of a second.

    Args:
        per_minute: requests a minute; 0 for no limit.
        clock: seconds.
    """

    def __init__(self, per_minute: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._interval = 60 / per_minute if per_minute else 0.0
        self._burst = max(0.0, 1.0 - self._interval)  # seconds that the bucket's tokens are worth
        self._free = clock()  # when the bucket is full again, less what it holds
        self._closed_until = 0.0

    def reserve(self) -> float:
        """Takes the next token; returns the seconds until it is there."""
        with self._lock:
            now = self._clock()
            start = max(now, self._free - self._burst, self._closed_until)
            self._free = max(self._free, start) + self._interval
            return start - now

    def pause(self, seconds: float) -> None:
        """Lets nobody through for a while."""
        with self._lock:
            self._closed_until = max(self._closed_until, self._clock() + seconds)

    def wait(self, stopped: threading.Event) -> None:
        """Waits for the next token, and for the end of a pause that began meanwhile; not longer than till `stopped`."""
        delay = self.reserve()
        while delay > 0 and not stopped.wait(delay):
            with self._lock:
                delay = self._closed_until - self._clock()


class Health:
    """Whether the endpoint serves anybody: counts what fails, and stops everyone when it makes no sense to go on.

    Args:
        url: of the endpoint.
        at_once: images that may be under way at once.

    Attributes:
        stopped: set once the endpoint was given up; nobody waits any longer.
        answered: whether it has ever said anything.
    """

    def __init__(self, url: str, *, at_once: int) -> None:
        self.stopped, self.answered = threading.Event(), False
        self._url, self._at_once = url, at_once
        self._lock = threading.Lock()
        self._under_way = self._successes = self._in_a_row = self._refused = 0
        self._fault: ClocError | None = None

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """While an image is asked for."""
        with self._lock:
            self._under_way += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1

    def check(self) -> None:
        """Raises the ClocError for which the endpoint was given up; does nothing while it was not."""
        if self._fault is not None:
            raise type(self._fault)(str(self._fault))

    def stop(self, fault: ClocError) -> ClocError:
        """Gives the endpoint up; the first fault counts."""
        with self._lock:
            self._fault = self._fault or fault
            self.stopped.set()
        return type(self._fault)(str(self._fault))

    def succeeded(self) -> None:
        """An image has a text."""
        with self._lock:
            self._successes, self._in_a_row = self._successes + 1, 0

    def refused(self, reason: str) -> None:
        """An image was refused. Raises ClocError when all are."""
        with self._lock:
            self._refused += 1
            limit = max(_FAILURES_IN_A_ROW, self._at_once)
            hopeless = not self._successes and self._refused >= limit
        if hopeless:
            raise self.stop(
                ClocError(
                    f"{KEY}: {self._url} refused all of the first {limit} images (the last: {reason}); name a model "
                    "that takes images, and settings that it knows"
                )
            )

    def failed(self, reason: str, *, attempts: int, silent: bool) -> None:
        """All attempts at an image failed. Raises ClocError when that is the endpoint's fault and not the image's.

        Args:
            reason: of the last failure.
            attempts: number of them.
            silent: nothing came at all, as long as was waited.
        """
        with self._lock:
            self._in_a_row += 1
            failed, alone = self._in_a_row, self._under_way == 1
            never = not self._successes and (alone or (silent and not self.answered))
            hopeless = failed >= _FAILURES_IN_A_ROW or never
        if hopeless:
            raise self.stop(
                ClocError(
                    f"{KEY}: {self._url} fails: {failed} image{'s' if failed > 1 else ''} in a row without a text, "
                    f"{attempts} attempts each (the last: {reason}); look at the server, or lower {KEY}.concurrency or "
                    "set requests_per_minute, then run again to go on"
                )
            )
