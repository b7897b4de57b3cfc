"""Samples of one stream's epoch in the order of training: shards are streams, tables are joined, what is not needed is
skipped.

Memory: what waits in the shuffle buffer, a few samples that are read ahead, and the labels of two shards.
"""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

from cloc.data.dataset import Dataset
from cloc.data.join import Labels, ShardLabels
from cloc.data.order import Pending, Span, StreamOrder
from cloc.data.prefetch import prefetched
from cloc.errors import DataError

_CHUNK = 16  # samples that the reading thread hands over at once: one at a time costs more than its reading
_AHEAD = 2  # chunks that wait


@dataclass(frozen=True)
class Record:
    """An encoded sample with its labels.

    Attributes:
        key: of the sample.
        shard, index: where it lies: number of the shard in the manifest, and of the sample in the shard.
        image: the encoded image.
        labels: captions and regions.
    """

    key: str
    shard: int
    index: int
    image: bytes
    labels: Labels


# None stands for a sample that has no caption: its image is not even read.
_Read = dict[int, Record | None]


def read_epoch(dataset: Dataset, order: StreamOrder, *, start: int = 0) -> Generator[Record | None, None, None]:
    """The samples of an epoch from the `start`-th on; None for each that has no caption.

    Raises:
        DataError: a shard or a table is broken, or a shard holds fewer samples than the manifest says.
    """
    held: _Read = {}
    with closing(prefetched(_chunks(dataset, order, order.pending(start)), depth=_AHEAD)) as chunks:
        for offset in order.offsets(start):
            while offset not in held:
                held |= next(chunks)
            yield held.pop(offset)


def _chunks(dataset: Dataset, order: StreamOrder, pending: Pending) -> Generator[_Read, None, None]:
    """What is pending by its place in the interval, read from front to back; the next shard is opened meanwhile."""
    spans = [span for span in order.spans if pending.touches(span)]
    with ThreadPoolExecutor(1, thread_name_prefix="open-shard") as opener:
        opening = [opener.submit(_Opened, dataset, span) for span in spans[:1]]
        try:
            for number in range(len(spans)):
                opened = opening.pop().result()
                opening = [opener.submit(_Opened, dataset, span) for span in spans[number + 1 : number + 2]]
                with closing(opened):
                    yield from opened.chunks(pending)
        finally:
            for future in opening:
                if not future.cancel() and future.exception() is None:
                    future.result().close()


class _Opened:
    """A shard whose labels are read and whose stream has begun."""

    def __init__(self, dataset: Dataset, span: Span) -> None:
        shard = dataset.manifest.shards[span.shard]
        self._dataset, self._shard, self._span = dataset, shard, span
        self._labels = ShardLabels(dataset, shard)
        self._images = dataset.open_images(shard)

    def close(self) -> None:
        self._images.close()

    def chunks(self, pending: Pending) -> Generator[_Read, None, None]:
        """The pending samples of the span; what lies behind the last of them is not read."""
        span, seen = self._span, 0
        last = max(place for place in range(span.offset, span.end) if place in pending)
        chunk: _Read = {}
        places: dict[str, int] = {}  # of the samples whose image is asked for

        def want(key: str) -> bool:
            nonlocal seen
            place = span.offset + seen - span.first
            seen += 1
            if not span.offset <= place <= last or place not in pending:
                return False
            if self._labels.has_caption(key):
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
