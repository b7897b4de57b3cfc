"""The order of training samples: every sample once, to one stream, in an order that can be continued anywhere."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloc.data import order as module
from cloc.data.order import SampleRandom, StreamOrder, shuffled


def split(counts: list[int], *, streams: int, buffer: int = 5, seed: int = 0, epoch: int = 0) -> list[StreamOrder]:
    return [
        StreamOrder(counts, seed=seed, epoch=epoch, stream=stream, streams=streams, buffer=buffer)
        for stream in range(streams)
    ]


counts_of_shards = st.lists(st.integers(0, 12), min_size=1, max_size=9)


@given(counts=counts_of_shards, streams=st.integers(1, 7), buffer=st.integers(1, 15), epoch=st.integers(0, 3))
def test_every_sample_goes_to_one_stream(counts: list[int], streams: int, buffer: int, epoch: int) -> None:
    orders = split(counts, streams=streams, buffer=buffer, epoch=epoch)
    lengths = [order.length for order in orders]
    assert max(lengths) - min(lengths) <= 1
    seen = [order.locate(offset) for order in orders for offset in order.offsets()]
    assert sorted(seen) == [(shard, index) for shard, count in enumerate(counts) for index in range(count)]


@given(counts=counts_of_shards, buffer=st.integers(1, 15), block=st.integers(1, 9))
@settings(max_examples=60)
def test_the_order_goes_on_anywhere_and_knows_what_is_left_to_read(counts: list[int], buffer: int, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)  # so that positions lie blocks apart
        for order in split(counts, streams=2, buffer=buffer):
            whole = list(order.offsets())
            for start in range(order.length + 1):
                assert list(order.offsets(start)) == whole[start:]
                pending = order.pending(start)
                assert {offset for offset in range(order.length) if offset in pending} == set(whole[start:])
                for span in order.spans:
                    left = set(whole[start:]) & set(range(span.offset, span.end))
                    assert pending.touches(span) == bool(left)


def test_it_is_what_a_shuffle_buffer_does() -> None:
    """The same draws on a list that is really held."""
    (order,) = split([40, 30, 50], streams=1, buffer=16)
    slots, held, expected = order._slots(0), list(range(16)), []
    for offset in range(16, 120):
        slot = next(slots)
        expected.append(held[slot])
        held[slot] = offset
    assert list(order.offsets()) == expected + order._rest(np.array(held)).tolist()


def test_a_sample_waits_no_longer_than_the_buffer_says() -> None:
    (order,) = split([1000] * 5, streams=1, buffer=100)
    for position, offset in enumerate(order.offsets()):
        assert offset <= position + 100


def test_a_far_position_is_reached_without_what_lies_before(monkeypatch: pytest.MonkeyPatch) -> None:
    order = split([10_000] * 100_000, streams=1000, buffer=512)[7]
    assert order.length == 1_000_000
    assert len(order.spans) <= 101
    made: list[int] = []
    block = StreamOrder._block
    monkeypatch.setattr(StreamOrder, "_block", lambda own, number: (made.append(number), block(own, number))[1])
    first = list(itertools.islice(order.offsets(900_000), 5))
    assert len(made) < 10
    assert all(offset < 900_000 + 512 + 5 for offset in first)


def test_the_order_stays_that_of_earlier_releases() -> None:
    """Checkpoints and figures refer to it."""
    orders = split([3, 5, 4], streams=3, buffer=3, seed=7, epoch=2)
    assert [list(order.offsets()) for order in orders] == [[2, 1, 0, 3], [1, 3, 2, 0], [0, 2, 3, 1]]
    assert [order.locate(0) for order in orders] == [(1, 0), (1, 4), (2, 3)]


def test_epochs_seeds_and_streams_differ() -> None:
    def places(**changed: int) -> list[tuple[int, int]]:
        (order,) = split([20, 20, 20], streams=1, **changed)
        return [order.locate(offset) for offset in order.offsets()]

    assert places() == places()
    assert len({tuple(places(seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    first, second = split([64], streams=2, buffer=8)
    assert list(first.offsets()) != list(second.offsets())


def test_draws_of_a_sample_depend_on_nothing_drawn_before() -> None:
    def draw(random: SampleRandom, *, epoch: int, shard: int, index: int) -> tuple[float, ...]:
        return tuple(random.of(epoch=epoch, shard=shard, index=index).random(5))

    samples = [
        dict(zip(("epoch", "shard", "index"), each, strict=True)) for each in itertools.product((0, 1), repeat=3)
    ]
    random = SampleRandom(7)
    forward = [draw(random, **each) for each in samples]
    random.of(epoch=0, shard=3, index=4).integers(9, size=3, dtype=np.int32)  # leaves half a word behind
    assert [draw(random, **each) for each in reversed(samples)] == forward[::-1]
    assert len(set(forward)) == len(samples)
    assert draw(SampleRandom(8), **samples[0]) != forward[0]


def test_shuffled_keeps_every_item() -> None:
    mixed = list(shuffled(range(50), rng=np.random.default_rng(0), buffer=8))
    assert sorted(mixed) == list(range(50))
    assert mixed != list(range(50))
