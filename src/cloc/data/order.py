"""The order of training samples: a pure function of counts and seeds, made of integers. Nothing is read.

An epoch is a permutation of the shards. Its samples, laid end to end, are cut into one interval a stream; intervals
differ by at most one sample, so a stream may begin and end in the middle of a shard. Inside its interval a stream draws
through a shuffle buffer. What the buffer holds at any position is computed from the last draws alone, however far it
is.

    order = StreamOrder([4, 4, 3], seed=0, epoch=0, stream=1, streams=2, buffer=4)
    for offset in order.offsets():       # place in the stream's interval, read from front to back
        shard, index = order.locate(offset)
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
_BLOCK = 4096  # draws of one generator: a position is reached by making its block, not all before it


class Purpose(IntEnum):
    """What randomness is for. First word of a seed, so that no two uses share their numbers."""

    SHARDS = 1
    BUFFER = 2
    REST = 3
    SAMPLE = 4
    GROUP = 5
    PART = 6
    MIXED = 7


def random_for(purpose: Purpose, *key: int) -> np.random.Generator:
    """The generator of a purpose and its key (as many integers for one purpose always)."""
    return np.random.default_rng((int(purpose), *key))


class SampleRandom:
    """Generators of single samples: Philox (Salmon et al. 2011), by the epoch's key and the sample for its counter.

    One object is set from sample to sample, which takes a tenth of the time of making a generator.
    """

    def __init__(self, seed: int) -> None:
        self._seed, self._epoch = seed, -1
        self._bits = np.random.Philox(key=0)
        self._state = self._bits.state
        self._generator = np.random.Generator(self._bits)

    def of(self, *, epoch: int, shard: int, index: int) -> np.random.Generator:
        """The generator of a sample, from its beginning; good until the next call."""
        if epoch != self._epoch:
            seeds = np.random.SeedSequence((int(Purpose.SAMPLE), self._seed, epoch))
            self._state["state"]["key"] = np.asarray(seeds.generate_state(2, np.uint64), dtype=np.uint64)
            self._epoch = epoch
        # The low words count the draws: 2 ** 128 of them a sample.
        self._state["state"]["counter"][2:] = index, shard
        self._bits.state = self._state
        return self._generator


@dataclass(frozen=True)
class Span:
    """Neighbouring samples of one shard.

    Attributes:
        shard: number of the shard in the manifest.
        first, stop: the samples `first` to `stop - 1` of the shard.
        offset: place of `first` in the stream's interval.
    """

    shard: int
    first: int
    stop: int
    offset: int

    @property
    def end(self) -> int:
        """Place in the stream's interval behind the last sample."""
        return self.offset + self.stop - self.first


class StreamOrder:
    """One stream's order of one epoch.

    Args:
        counts: samples of each shard, in the manifest's order.
        seed, epoch: of the permutation and the draws.
        stream, streams: whose interval, of how many.
        buffer: samples that are shuffled together.

    Attributes:
        epoch: as given.
        length: samples of the interval.
        spans: the interval, from front to back.
    """

    def __init__(self, counts: Sequence[int], *, seed: int, epoch: int, stream: int, streams: int, buffer: int) -> None:
        self.epoch = epoch
        self._buffer, self._key = buffer, (seed, epoch, stream)
        sizes = np.asarray(counts, dtype=np.int64)
        shards = random_for(Purpose.SHARDS, seed, epoch).permutation(len(sizes))
        ends = np.cumsum(sizes[shards])
        total = int(ends[-1]) if len(ends) else 0
        begin, end = total * stream // streams, total * (stream + 1) // streams
        self.length = end - begin
        self.spans = _spans(shards, sizes, ends, begin=begin, end=end)
        self._offsets = [span.offset for span in self.spans]

    @property
    def _drawn(self) -> int:
        """Samples that leave a full buffer; the rest of the interval comes out of it in random order at the end."""
        return max(0, self.length - self._buffer)

    def locate(self, offset: int) -> tuple[int, int]:
        """(shard, index in the shard) of a place in the interval."""
        number = int(np.searchsorted(self._offsets, offset, side="right")) - 1
        span = self.spans[number]
        return span.shard, span.first + offset - span.offset

    def offsets(self, start: int = 0) -> Iterator[int]:
        """Places in the interval in the order of training, from the `start`-th on."""
        drawn = min(start, self._drawn)
        held = self._held(drawn)
        for position, slot in zip(range(drawn, self._drawn), self._slots(drawn), strict=False):
            offset = int(held[slot])
            held[slot] = position + self._buffer
            yield offset
        yield from self._rest(held)[max(0, start - self._drawn) :].tolist()

    def pending(self, start: int) -> "Pending":
        """What must be read to go on from the `start`-th sample."""
        drawn = min(start, self._drawn)
        held = self._held(drawn)
        if start > drawn:
            held = self._rest(held)[start - drawn :]
        return Pending(early=frozenset(held.tolist()), later=drawn + self._buffer)

    def _rest(self, held: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """What the buffer holds when nothing comes any more, in the order in which it leaves."""
        return held[random_for(Purpose.REST, *self._key).permutation(len(held))]

    def _slots(self, start: int) -> Iterator[int]:
        """Which slot of the buffer each draw takes, from the `start`-th draw on."""
        first = start // _BLOCK
        for block in itertools.count(first):
            yield from self._block(block)[start - block * _BLOCK if block == first else 0 :].tolist()

    def _block(self, number: int) -> npt.NDArray[np.int64]:
        return random_for(Purpose.BUFFER, *self._key, number).integers(self._buffer, size=_BLOCK)

    def _held(self, drawn: int) -> npt.NDArray[np.int64]:
        """What each slot holds after `drawn` draws: the sample that came in at the last draw of that slot."""
        slots = min(self._buffer, self.length)
        held = np.full(slots, -1, dtype=np.int64)
        block = (drawn - 1) // _BLOCK
        while block >= 0 and (held < 0).any():
            first = block * _BLOCK
            draws = self._block(block)[: drawn - first]
            # Of a slot that is drawn more than once the last draw counts: reversed, that is the first one.
            slot, place = np.unique(draws[::-1], return_index=True)
            arrived = first + len(draws) - 1 - place + self._buffer
            unknown = held[slot] < 0
            held[slot[unknown]] = arrived[unknown]
            block -= 1
        return np.where(held < 0, np.arange(slots), held)


@dataclass(frozen=True)
class Pending:
    """Places of the interval that must still be read.

    Attributes:
        early: places that wait in the buffer.
        later: all from this place on.
    """

    early: frozenset[int]
    later: int

    def __contains__(self, offset: int) -> bool:
        return offset >= self.later or offset in self.early

    def touches(self, span: Span) -> bool:
        """Whether anything of a span must still be read."""
        return span.end > self.later or any(span.offset <= place < span.end for place in self.early)


def _spans(
    shards: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    *,
    begin: int,
    end: int,
) -> tuple[Span, ...]:
    """The interval [begin, end) of the samples laid end to end, as spans of shards."""
    spans: list[Span] = []
    place = begin
    for number in range(int(np.searchsorted(ends, begin, side="right")), len(ends)):
        if place >= end:
            break
        size, stop = int(sizes[shards[number]]), int(ends[number])
        if not size:
            continue
        first = place - (stop - size)
        last = min(end, stop) - (stop - size)
        spans.append(Span(shard=int(shards[number]), first=first, stop=last, offset=place - begin))
        place = min(end, stop)
    return tuple(spans)


def shuffled(items: Iterable[T], *, rng: np.random.Generator, buffer: int) -> Iterator[T]:
    """The items in random order, holding at most `buffer` of them."""
    held: list[T] = []
    for item in items:
        if len(held) < buffer:
            held.append(item)
            continue
        place = int(rng.integers(buffer))
        held[place], item = item, held[place]
        yield item
    for place in rng.permutation(len(held)):
        yield held[place]
