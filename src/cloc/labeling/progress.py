"""A line of progress at least every few seconds, also while one batch or the loading of a model takes minutes."""

import sys
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType


@dataclass
class Progress:
    """Prints images done, images/s, shard and time left to stderr from a thread, until the `with` block ends.

    Attributes:
        name: what is being done, starts every line.
        images, shards: how many there are in all.
        interval: seconds between lines.
    """

    name: str
    images: int
    shards: int
    interval: float = 5.0
    _done: int = 0
    _skipped: int = 0
    _shard: int = 0
    _start: float = field(default_factory=time.monotonic)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> "Progress":
        self._start = time.monotonic()
        self._thread = threading.Thread(target=self._beat, name=f"{self.name}-progress", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if kind is None:
            self._print()

    def advance(self, images: int) -> None:
        """Counts images that went through."""
        self._done += images

    def skip(self, images: int) -> None:
        """Counts images whose labels stood already: they say nothing about the speed."""
        self._skipped += images

    def shard(self, number: int) -> None:
        """Says which shard is being done, from 1."""
        self._shard = number

    def line(self) -> str:
        """The line as it would be printed now."""
        seconds = max(time.monotonic() - self._start, 1e-6)
        rate = self._done / seconds
        left = self.images - self._done - self._skipped
        eta = f"{left / rate:.0f} s left" if rate > 0 else "time left unknown" if left else "done"
        skipped = f", {self._skipped} stood already" if self._skipped else ""
        return (
            f"{self.name}: {self._done + self._skipped}/{self.images} images{skipped}, {rate:.1f} images/s, "
            f"shard {self._shard} of {self.shards}, {seconds:.0f} s, {eta}"
        )

    def _beat(self) -> None:
        while not self._stop.wait(self.interval):
            self._print()

    def _print(self) -> None:
        print(self.line(), file=sys.stderr, flush=True)
