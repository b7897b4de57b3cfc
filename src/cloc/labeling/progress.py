"""A line of progress at least every few seconds, also while one batch or the loading of a model takes minutes."""

import sys
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType


@dataclass
class Progress:
    """Prints images done, images/s, rows an image, data-wait share, shard and time left to stderr from a thread, until
    the `with` block ends.

    Attributes:
        name: what is being done, starts every line.
        images, shards: how many there are in all.
        rows: what a row is ("regions").
        interval: seconds between lines.
    """

    name: str
    images: int
    shards: int
    rows: str = "rows"
    interval: float = 5.0
    _done: int = 0
    _rows: int = 0
    _skipped: int = 0
    _shards: int = 0
    _waited: float = 0.0
    _worked: float = 0.0
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

    def advance(self, images: int, rows: int = 0) -> None:
        """Counts images that went through, and the rows that they got."""
        self._done += images
        self._rows += rows

    def skip(self, images: int) -> None:
        """Counts a shard's images whose labels stood already: they say nothing about the speed."""
        self._skipped += images
        self._shards += 1

    def shard(self) -> None:
        """Counts a shard that is done."""
        self._shards += 1

    def time(self, *, waited: float, worked: float) -> None:
        """Adds seconds in which the labeler waited for data, and seconds in which it worked."""
        self._waited += waited
        self._worked += worked

    @property
    def data_wait(self) -> float:
        """Share of the labeler's time in which it waited for data."""
        return self._waited / max(self._waited + self._worked, 1e-9)

    @property
    def images_per_second(self) -> float:
        """Images that went through, a second, from the start."""
        return self._done / max(time.monotonic() - self._start, 1e-6)

    def line(self) -> str:
        """The line as it would be printed now."""
        rate = self.images_per_second
        left = self.images - self._done - self._skipped
        eta = f"{left / rate:.0f} s left" if rate > 0 else "time left unknown" if left else "done"
        skipped = f", {self._skipped} stood already" if self._skipped else ""
        speed = f", {rate:.1f} images/s" if self._done else ""
        labelled = f", {self._rows / self._done:.1f} {self.rows}/image" if self._done else ""
        waited = f", {self.data_wait:.0%} data wait" if self._worked else ""
        return (
            f"{self.name}: {self._done + self._skipped}/{self.images} images{skipped}{speed}{labelled}{waited}, "
            f"{self._shards} of {self.shards} shards, {time.monotonic() - self._start:.0f} s, {eta}"
        )

    def _beat(self) -> None:
        while not self._stop.wait(self.interval):
            self._print()

    def _print(self) -> None:
        print(self.line(), file=sys.stderr, flush=True)
