"""The search for duplicates in a data set of any size, in bounded memory: fingerprints are parted over files on disk,
so that whatever may be equal or near lies in one part, and each part is worked on alone.

Each image gets a place: its number in the order of the data set; those of the other data set come behind. Of the images
that an image duplicates, the match is an equal file, else the nearest picture, and of several the first.

The disk (TMPDIR) takes about 150 bytes an image.
"""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cloc.data import fingerprints
from cloc.data.dataset import Dataset
from cloc.data.duplicates.hamming import Pairs, best, masks, near_pairs
from cloc.data.duplicates.spill import Records, Spill, run_starts
from cloc.data.schema import Shard
from cloc.data.shards import MAX_KEY

MEMORY = 512 << 20  # bytes, about, that the search works in
_WORK = 240  # bytes of working memory that a record takes at most
_BUFFER = 1 << 18  # records gathered before they are written to their parts

_PRINT = np.dtype([("place", "<i8"), ("phash", "<u8"), ("sha256", "<u8", (4,))])
# One hash with the first place where it occurs as what is matched, and as what may be matched.
_UNIQUE = np.dtype([("phash", "<u8"), ("query", "<i8"), ("reference", "<i8")])
_NEAR = np.dtype([("phash", "<u8"), ("of", "<i8"), ("distance", "u1")])
_MATCH = np.dtype([("place", "<i8"), ("of", "<i8"), ("distance", "u1"), ("exact", "?")])
_NAMED = np.dtype([*((name, _MATCH[name]) for name in _MATCH.names or ()), ("of_key", f"S{MAX_KEY}")])
_NONE = np.int64(1 << 62)  # a place behind all others: nowhere
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: spreads neighbours


@dataclass(frozen=True)
class Duplicate:
    """An image that occurs again.

    Attributes:
        key: its key.
        of_shard, of_key: where it occurs, the earlier time or in the other data set.
        distance: differing bits of the perceptual hashes; 0 for equal files.
        exact: whether the files are equal.
    """

    key: str
    of_shard: str
    of_key: str
    distance: int
    exact: bool


@dataclass(frozen=True)
class _Places:
    """Shards behind one another: which places each one has."""

    dataset: Dataset
    start: int

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """First place of each shard, and the place behind the last."""
        return np.cumsum([self.start, *(shard.images for shard in self.dataset.manifest.shards)], dtype=np.int64)

    def part(self, place_N: npt.NDArray[np.int64], *, parts: int) -> npt.NDArray[np.int64]:
        """Parts of places so that the images of a shard stay together."""
        return (np.searchsorted(self.offsets, place_N, side="right") - 1) * parts // len(self.dataset.manifest.shards)

    def shards(self, part: int, *, parts: int) -> Iterator[tuple[int, Shard]]:
        """The shards of a part with their first places."""
        shards = self.dataset.manifest.shards
        for index in range(-(-part * len(shards) // parts), -(-(part + 1) * len(shards) // parts)):
            yield int(self.offsets[index]), shards[index]


def search(
    dataset: Dataset, *, other: Dataset | None = None, bits: int, memory: int = MEMORY
) -> Iterator[tuple[Shard, list[Duplicate]]]:
    """The duplicates of a data set, shard after shard in its order; equal calls give equal results.

    Args:
        dataset: all its shards have fingerprints.
        other: where its images may occur; None looks for those that occur EARLIER in the data set itself.
        bits: differing bits of perceptual hashes up to which pictures are near-duplicates.
        memory: bytes to work in, about.

    Raises:
        DataError: fingerprints are absent or broken.
    """
    if not dataset.manifest.shards or (other and not other.manifest.shards):
        return
    own = _Places(dataset, 0)
    sought = _Places(other, dataset.manifest.images) if other else own
    images = dataset.manifest.images + (other.manifest.images if other else 0)
    with tempfile.TemporaryDirectory(prefix="cloc-duplicates-") as scratch:
        found = _Search(Path(scratch), own, sought, bits=bits, parts=-(-images * _WORK // memory) or 1)
        yield from found.run()


class _Search:
    def __init__(self, scratch: Path, own: _Places, sought: _Places, *, bits: int, parts: int) -> None:
        self._own, self._sought, self._bits, self._parts = own, sought, bits, parts
        self._scratch = scratch
        self._inside = own is sought
        self._matches = self._spill("matches", _MATCH)

    def _spill(self, name: str, dtype: Any) -> Spill:
        return Spill(self._scratch / name, dtype, parts=self._parts)

    def run(self) -> Iterator[tuple[Shard, list[Duplicate]]]:
        by_file, by_hash = self._spill("by_file", _PRINT), self._spill("by_hash", _PRINT)
        for records in self._records():
            by_file.append(records, (records["sha256"][:, 0] % np.uint64(self._parts)).astype(np.int64))
            by_hash.append(records, self._hash_part(records["phash"]))
        for part in range(self._parts):
            self._match_files(by_file.read(part))
        by_file.remove()
        uniques = self._spill("uniques", _UNIQUE)
        for part in range(self._parts):
            self._match_hashes(by_hash.read(part), uniques, part)
        if self._bits:
            near = self._near(uniques)
            for part in range(self._parts):
                self._match_near(by_hash.read(part), near.read(part))
        by_hash.remove()
        yield from self._by_shard(self._named())

    # ---- gathering

    def _records(self) -> Iterator[Records]:
        held: list[Records] = []
        for places in (self._own,) if self._inside else (self._own, self._sought):
            for start, shard in places.shards(0, parts=1):
                prints = fingerprints.read(places.dataset, shard)
                records = np.empty(len(prints), dtype=_PRINT)
                records["place"] = np.arange(start, start + len(prints))
                records["phash"], records["sha256"] = prints.phash_N, prints.sha256_N4
                held.append(records)
                if sum(map(len, held)) >= _BUFFER:
                    yield np.concatenate(held)
                    held = []
        if held:
            yield np.concatenate(held)

    def _hash_part(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        return ((hashes * _MIX >> np.uint64(33)) % np.uint64(self._parts)).astype(np.int64)

    def _roles(self, place_N: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The places of images that are matched, and of those that may be; `_NONE` for the others."""
        if self._inside:
            return place_N, place_N
        query_N = place_N < self._sought.start
        return np.where(query_N, place_N, _NONE), np.where(query_N, _NONE, place_N)

    # ---- matching

    def _match_files(self, records: Records) -> None:
        words = records["sha256"]
        self._match_equal(records, order=np.lexsort((*words.T,)), exact=True)

    def _match_hashes(self, records: Records, uniques: Spill, part: int) -> None:
        found = self._match_equal(records, order=np.argsort(records["phash"]), exact=False)
        uniques.append(found, np.full(len(found), part))

    def _match_equal(self, records: Records, *, order: npt.NDArray[np.int64], exact: bool) -> Records:
        """Matches images of equal hashes, which `order` brings together, and returns each hash once."""
        ordered = records[order]
        starts = run_starts(*(ordered["sha256"].T if exact else (ordered["phash"],)))
        if not len(starts):
            return np.empty(0, dtype=_UNIQUE)
        query_N, reference_N = self._roles(ordered["place"])
        uniques = np.empty(len(starts), dtype=_UNIQUE)
        uniques["phash"] = ordered["phash"][starts]
        uniques["query"] = np.minimum.reduceat(query_N, starts)
        uniques["reference"] = np.minimum.reduceat(reference_N, starts)
        of_N = np.repeat(uniques["reference"], np.diff(starts, append=len(ordered)))
        hit_N = (query_N != _NONE) & (of_N != _NONE) & (of_N != query_N)
        self._add(query_N[hit_N], of_N[hit_N], np.uint8(0), exact=exact)
        return uniques

    def _near(self, uniques: Spill) -> Spill:
        """For hashes that occur nowhere as they are: the nearest one within reach, once or more often."""
        near, held = self._spill("near", _NEAR), 0
        total = sum(len(block) for block in uniques.blocks())
        for number, mask in enumerate(masks(self._bits, count=total)):
            parted = uniques
            if self._parts > 1:
                parted = self._spill(f"mask-{number}", _UNIQUE)
                for block in uniques.blocks():
                    parted.append(block, self._hash_part(block["phash"] & mask))
            for part in range(self._parts):
                held += self._near_in(parted.read(part), mask, near)
            if parted is not uniques:
                parted.remove()
            if held > total:  # most pairs agree under many masks
                near, held = self._condensed(near, number)
        return near

    def _condensed(self, near: Spill, number: int) -> tuple[Spill, int]:
        """Each hash once, and how many there are."""
        other, held = self._spill(f"near-{number}", _NEAR), 0
        for part in range(self._parts):
            kept = _nearest(near.read(part))
            other.append(kept, np.full(len(kept), part))
            held += len(kept)
        near.remove()
        return other, held

    def _near_in(self, records: Records, mask: np.uint64, near: Spill) -> int:
        """Adds the nearest hash of each that has one under a mask, and returns how many have."""
        query_N, reference_N = records["query"], records["reference"]
        found: list[Pairs] = []
        held = 0
        for pairs in near_pairs(records["phash"], mask=mask, bits=self._bits):
            for a, b in ((pairs.first_P, pairs.second_P), (pairs.second_P, pairs.first_P)):
                if self._inside:
                    valid = reference_N[b] < query_N[a]
                else:
                    valid = (query_N[a] != _NONE) & (reference_N[a] == _NONE) & (reference_N[b] != _NONE)
                found.append(Pairs(a[valid], reference_N[b[valid]], pairs.distance_P[valid]))
                held += len(found[-1].first_P)
            if held > len(records):  # pairs may be far more than hashes: only the best of each is kept
                found = [best(found)]
                held = 0
        kept = best(found)
        chosen = np.empty(len(kept.first_P), dtype=_NEAR)
        chosen["phash"], chosen["of"] = records["phash"][kept.first_P], kept.second_P
        chosen["distance"] = kept.distance_P
        near.append(chosen, self._hash_part(chosen["phash"]))
        return len(chosen)

    def _match_near(self, records: Records, near: Records) -> None:
        """Gives the nearest hash of each hash to the images that have it: inside a data set to the first of them."""
        if not len(near):
            return
        near = _nearest(near)
        hashes = near["phash"]
        query_N, _ = self._roles(records["place"])
        at = np.minimum(np.searchsorted(hashes, records["phash"]), len(hashes) - 1)
        hit_N = (hashes[at] == records["phash"]) & (query_N != _NONE)
        if self._inside:
            first = np.full(len(hashes), _NONE)
            np.minimum.at(first, at[hit_N], query_N[hit_N])
            hit_N &= first[at] == query_N
        at = at[hit_N]
        self._add(query_N[hit_N], near["of"][at], near["distance"][at], exact=False)

    def _add(self, place_N: Any, of_N: Any, distance: Any, *, exact: bool) -> None:
        matches = np.empty(len(place_N), dtype=_MATCH)
        matches["place"], matches["of"], matches["distance"], matches["exact"] = place_N, of_N, distance, exact
        self._matches.append(matches, self._own.part(matches["place"], parts=self._parts))

    # ---- naming

    def _named(self) -> Spill:
        """The best match of each image with the key of what it duplicates, parted as the data set's shards are."""
        by_other = self._spill("by_other", _MATCH)
        for part in range(self._parts):
            matches = self._matches.read(part)
            order = np.lexsort((matches["of"], matches["distance"], ~matches["exact"], matches["place"]))
            matches = matches[order]
            matches = matches[run_starts(matches["place"])]
            by_other.append(matches, self._sought.part(matches["of"], parts=self._parts))
        self._matches.remove()
        named = self._spill("named", _NAMED)
        for part in range(self._parts):
            for start, shard, matches in _cut(by_other.read(part), "of", self._sought.shards(part, parts=self._parts)):
                keys = np.array(fingerprints.read(self._sought.dataset, shard).keys_N.to_pylist(), dtype=f"S{MAX_KEY}")
                records = np.empty(len(matches), dtype=_NAMED)
                for name in _MATCH.names or ():
                    records[name] = matches[name]
                records["of_key"] = keys[matches["of"] - start]
                named.append(records, self._own.part(records["place"], parts=self._parts))
        return named

    def _by_shard(self, named: Spill) -> Iterator[tuple[Shard, list[Duplicate]]]:
        others = self._sought.dataset.manifest.shards
        for part in range(self._parts):
            shards = self._own.shards(part, parts=self._parts)
            for start, shard, records in _cut(named.read(part), "place", shards, empty=True):
                if not len(records):
                    yield shard, []
                    continue
                keys = fingerprints.read(self._own.dataset, shard).keys_N
                of_shards = np.searchsorted(self._sought.offsets, records["of"], side="right") - 1
                yield (
                    shard,
                    [
                        Duplicate(
                            key=keys[int(record["place"]) - start].as_py(),
                            of_shard=others[of_shard].name,
                            of_key=record["of_key"].decode(),
                            distance=int(record["distance"]),
                            exact=bool(record["exact"]),
                        )
                        for record, of_shard in zip(records, of_shards, strict=True)
                    ],
                )


def _nearest(near: Records) -> Records:
    """Each hash once, in order, with the nearest place."""
    ordered = near[np.lexsort((near["of"], near["distance"], near["phash"]))]
    return ordered[run_starts(ordered["phash"])]


def _cut(
    records: Records, field: str, shards: Iterable[tuple[int, Shard]], *, empty: bool = False
) -> Iterator[tuple[int, Shard, Records]]:
    """Records of places cut by the shards whose places they are, in order of the places."""
    records = records[np.argsort(records[field], kind="stable")]
    for start, shard in shards:
        left, right = np.searchsorted(records[field], [start, start + shard.images])
        if empty or right > left:
            yield start, shard, records[left:right]
