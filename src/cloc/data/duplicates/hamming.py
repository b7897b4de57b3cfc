"""Finding 64-bit hashes that differ in a few bits, without comparing each with each.

Multi-index hashing (Norouzi, Punjani, Fleet: Fast exact search in Hamming space with multi-index hashing, 2014; Manku,
Jain, Das Sarma: Detecting near-duplicates for web crawling, 2007): cut the bits into m bands; hashes that differ in at
most k bits agree in at least m - k of them. So for every choice of m - k bands, only hashes that agree there are
compared. Few bands give short keys and much to compare, many give many keys: `masks` takes what is cheapest.

Names: N hashes, R reference hashes, P pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt

from cloc.data.duplicates.spill import run_starts

Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]
Distances = npt.NDArray[np.uint8]

BITS = 64
_MAX_MASKS = 512
# Seconds to sort a hash into place, and to compare a pair: only their ratio matters.
_SORT, _COMPARE = 1.5e-7, 1.0e-8
# Bits of perceptual hashes are neither even nor independent: of a key's bits, so many count.
_EFFECTIVE = 0.75
_LONG_RUN = 1024  # hashes that agree under one mask and are split further before they are compared
_CHUNK = 1 << 21  # candidate pairs compared at a time


@dataclass(frozen=True)
class Pairs:
    """Pairs of hashes within the distance.

    Attributes:
        first_P, second_P: their indices.
        distance_P: bits that differ.
    """

    first_P: Indices
    second_P: Indices
    distance_P: Distances


def distances(a: Hashes, b: Hashes) -> Distances:
    """Number of differing bits, elementwise."""
    return np.bitwise_count(a ^ b)


def masks(bits: int, *, count: int, among: int = (1 << BITS) - 1) -> list[np.uint64]:
    """Masks so that any two hashes that differ in at most `bits` of the bits `among` agree under one or more of them.

    Args:
        bits: the distance.
        count: number of hashes, for the choice.
        among: the bits that may differ at all.
    """
    free = [bit for bit in range(BITS) if among >> bit & 1]
    if len(free) <= bits:
        return [np.uint64(0)]
    choices = [bands for bands in range(bits + 1, len(free) + 1) if comb(bands, bits) <= _MAX_MASKS]
    bands = min(choices, key=lambda bands: _cost(bands, bits, count=count, free=len(free)))
    # Neighbouring bits tell much the same: each band gets bits from everywhere.
    values = [sum(1 << bit for bit in free[band::bands]) for band in range(bands)]
    return [np.uint64(sum(chosen)) for chosen in combinations(values, bands - bits)]


def _cost(bands: int, bits: int, *, count: int, free: int) -> float:
    """Seconds, roughly."""
    key_bits = _EFFECTIVE * free * (bands - bits) / bands
    return comb(bands, bits) * (count * _SORT + count**2 / 2 ** (key_bits + 1) * _COMPARE)


def near_pairs(hashes_N: Hashes, *, mask: np.uint64, bits: int) -> Iterator[Pairs]:
    """Pairs of DISTINCT hashes that agree under a mask and differ in at most `bits`; a pair may come several times.

    Memory is proportional to N, whatever the number of pairs.
    """
    order_N = np.argsort(hashes_N & mask)
    keys_N = (hashes_N & mask)[order_N]
    starts, lengths = _runs(keys_N)
    long = lengths > _LONG_RUN
    for start, length in zip(starts[long], lengths[long], strict=True):
        yield from _split(hashes_N, order_N[start : start + length], mask=mask, bits=bits)
    if long.any():
        kept_N = ~np.repeat(long, lengths)
        order_N, keys_N = order_N[kept_N], keys_N[kept_N]
    yield from _compare(hashes_N, order_N, keys_N, bits=bits)


def _runs(keys_N: Hashes) -> tuple[Indices, Indices]:
    """Starts and lengths of the runs of equal keys."""
    starts = run_starts(keys_N)
    return starts, np.diff(starts, append=len(keys_N))


def _split(hashes_N: Hashes, members: Indices, *, mask: np.uint64, bits: int) -> Iterator[Pairs]:
    """Pairs among the members of a long run: they agree under the mask, so masks of the other bits part them."""
    inner = masks(bits, count=len(members), among=~int(mask) & ((1 << BITS) - 1))
    for further in inner:
        if further:
            found = near_pairs(hashes_N[members], mask=mask | further, bits=bits)
            yield from (Pairs(members[pairs.first_P], members[pairs.second_P], pairs.distance_P) for pairs in found)
        else:
            yield from _compare(hashes_N, members, np.zeros(len(members), dtype=np.uint64), bits=bits)


def _compare(hashes_N: Hashes, order_N: Indices, keys_N: Hashes, *, bits: int) -> Iterator[Pairs]:
    """Each with each inside runs of equal keys: neighbours first, then those two apart, and so on."""
    ordered_N = hashes_N[order_N]
    left = np.arange(len(keys_N) - 1)
    shift = 1
    while True:
        left = left[: np.searchsorted(left, len(keys_N) - shift)]
        left = left[keys_N[left] == keys_N[left + shift]]
        if not len(left):
            return
        distance = distances(ordered_N[left], ordered_N[left + shift])
        near = distance <= bits
        yield Pairs(order_N[left[near]], order_N[left[near] + shift], distance[near])
        shift += 1


@dataclass(frozen=True)
class _Keys:
    mask: np.uint64
    keys_R: Hashes
    order_R: Indices


class HashIndex:
    """Reference hashes held in memory, to be asked which of them is nearest.

    Takes 16 bytes a hash and mask.
    """

    def __init__(self, hashes_R: Hashes, *, bits: int) -> None:
        """Args: hashes_R: distinct, those to be preferred first. bits: how far off a hash may be."""
        self._hashes_R = hashes_R
        self._bits = bits
        self._tables: list[_Keys] = []
        for mask in masks(bits, count=len(hashes_R)) if bits else [np.uint64((1 << BITS) - 1)]:
            order_R = np.argsort(hashes_R & mask)
            self._tables.append(_Keys(mask, (hashes_R & mask)[order_R], order_R))

    def nearest(self, hashes_N: Hashes) -> Pairs:
        """For each hash that has one in reach, the nearest reference (of equally near ones the first); in order."""
        found = [pairs for table in self._tables for pairs in self._reach(hashes_N, table)]
        return best(found)

    def _reach(self, hashes_N: Hashes, table: _Keys) -> Iterator[Pairs]:
        wanted_N = hashes_N & table.mask
        left_N = np.searchsorted(table.keys_R, wanted_N, side="left")
        counts_N = np.searchsorted(table.keys_R, wanted_N, side="right") - left_N
        for first, place in expand(left_N, counts_N):
            second = table.order_R[place]
            distance = distances(hashes_N[first], self._hashes_R[second])
            near = distance <= self._bits
            if near.any():
                yield best([Pairs(first[near], second[near], distance[near])])


def expand(left_N: Indices, counts_N: Indices) -> Iterator[tuple[Indices, Indices]]:
    """The ranges left[i] ... left[i] + counts[i] as arrays of (i, place), some millions at a time."""
    ends_N = np.cumsum(counts_N)
    total = int(ends_N[-1]) if len(ends_N) else 0
    for start in range(0, total, _CHUNK):
        flat = np.arange(start, min(start + _CHUNK, total))
        index = np.searchsorted(ends_N, flat, side="right")
        yield index, left_N[index] + flat - (ends_N[index] - counts_N[index])


def best(found: Sequence[Pairs]) -> Pairs:
    """For each first index its pair of least distance, of those the one with the least second index; in order."""
    if not found:
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8))
    first = np.concatenate([pairs.first_P for pairs in found])
    second = np.concatenate([pairs.second_P for pairs in found])
    distance = np.concatenate([pairs.distance_P for pairs in found])
    order = np.lexsort((second, distance, first))
    order = order[run_starts(first[order])]
    return Pairs(first[order], second[order], distance[order])
