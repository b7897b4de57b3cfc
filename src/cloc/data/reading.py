"""Samples of one stream's epoch in the order of training: shards are streams, tables are joined, what is not needed is
skipped.

Memory: what waits in the shuffle buffer, a few samples that are read ahead, and the labels of two shards.
"""

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from cloc.data.dataset import Dataset
from cloc.data.order import Pending, Span, StreamOrder
from cloc.data.prefetch import prefetched
from cloc.data.schema import Shard
from cloc.errors import DataError

_CHUNK = 16  # samples that the reading thread hands over at once: one at a time costs more than its reading
_AHEAD = 2  # chunks that wait


L = TypeVar("L")
L_co = TypeVar("L_co", covariant=True)


class LabelReader(Protocol[L_co]):
    """The labels of a shard."""

    def wants(self, key: str) -> bool:
        """Whether an image can be trained on."""
        ...

    def of(self, key: str) -> L_co:
        """What is known of an image."""
        ...


# Opens the labels of a shard.
OpenLabels = Callable[[Dataset, Shard], LabelReader[L]]


@dataclass(frozen=True)
class Record(Generic[L]):
    """An encoded sample with its labels.

    Attributes:
        key: of the sample.
        shard, index: where it lies: number of the shard in the manifest, and of the sample in the shard.
        image: the encoded image.
        labels: what is known of it.
    """

    key: str
    shard: int
    index: int
    image: bytes
    labels: L


# None stands for a sample that cannot be trained on: its image is not even read.
_Read = dict[int, Record[L] | None]


def read_epoch(
    dataset: Dataset, order: StreamOrder, *, labels: OpenLabels[L], start: int = 0
) -> Generator[Record[L] | None, None, None]:
    """The samples of an epoch from the `start`-th on; None for each that `labels` does not want.

    Raises:
        DataError: a shard or a table is broken, or a shard holds fewer samples than the manifest says.
    """
    held: _Read[L] = {}
    with closing(prefetched(_chunks(dataset, order, order.pending(start), labels), depth=_AHEAD)) as chunks:
        for offset in order.offsets(start):
            while offset not in held:
                held |= next(chunks)
            yield held.pop(offset)


def _chunks(
    dataset: Dataset, order: StreamOrder, pending: Pending, labels: OpenLabels[L]
) -> Generator[_Read[L], None, None]:
    """What is pending by its place in the interval, read from front to back; the next shard is opened meanwhile."""
    spans = [span for span in order.spans if pending.touches(span)]
    with ThreadPoolExecutor(1, thread_name_prefix="open-shard") as opener:
        opening = [opener.submit(_Opened[L], dataset, span, labels) for span in spans[:1]]
        try:
            for number in range(len(spans)):
                opened = opening.pop().result()
                opening = [opener.submit(_Opened[L], dataset, span, labels) for span in spans[number + 1 : number + 2]]
                with closing(opened):
                    yield from opened.chunks(pending)
        finally:
            for future in opening:
                if not future.cancel() and future.exception() is None:
                    future.result().close()


class _Opened(Generic[L]):
    """A shard whose labels are read and whose stream has begun."""

    def __init__(self, dataset: Dataset, span: Span, labels: OpenLabels[L]) -> None:
        shard = dataset.manifest.shards[span.shard]
        self._dataset, self._shard, self._span = dataset, shard, span
        self._labels = labels(dataset, shard)
        self._images = dataset.open_images(shard)

    def close(self) -> None:
        self._images.close()

    def chunks(self, pending: Pending) -> Generator[_Read[L], None, None]:
        """The pending samples of the span; what lies behind the last of them is not read."""
        span, seen = self._span, 0
        last = max(place for place in range(span.offset, span.end) if place in pending)
        chunk: _Read[L] = {}
        places: dict[str, int] = {}  # of the samples whose image is asked for

        def want(key: str) -> bool:
            nonlocal seen
            place = span.offset + seen - span.first
            seen += 1
            if not span.offset <= place <= last or place not in pending:
                return False
            if self._labels.wants(key):
                places[key] = place
                return True
            chunk[place] = None
            return False

        with closing(self._images.read(want)) as images:
            for key, image in images:
                place = places.pop(key)
                index = span.first + place - span.offset
                chunk[place] = Record(key, span.shard, index, image, self._labels.of(key))
                if len(chunk) >= _CHUNK:
                    yield chunk
                    chunk = {}
                if place == last:
                    break
            else:
                self._check(seen)
        yield chunk

    def _check(self, seen: int) -> None:
        """Called at the tar's end, which a span that ends in the middle does not come to."""
        if seen < self._span.stop:
            raise DataError(
                f"{self._dataset.source(self._shard)}: {seen} samples, the manifest says {self._shard.images}; "
                "write this shard again"
            )
