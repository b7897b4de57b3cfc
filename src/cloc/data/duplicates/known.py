"""Images that must not come in again: an evaluation's fingerprints, held in memory while others stream by."""

import functools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cloc.data import fingerprints
from cloc.data.dataset import Dataset
from cloc.data.duplicates.hamming import HashIndex
from cloc.errors import DataError

OCCURS = "occurs in "  # what the reason for leaving an image out begins with


@dataclass(frozen=True)
class Match:
    """A known image that another one duplicates.

    Attributes:
        data: URL of its data set, as it was named.
        key: its key.
        distance: differing bits of the perceptual hashes.
        exact: whether the files are equal.
    """

    data: str
    key: str
    distance: int
    exact: bool

    def __str__(self) -> str:
        how = "exact" if self.exact else f"near, {self.distance} bits"
        return f"{OCCURS}{self.data} as {self.key!r} ({how})"


class KnownImages:
    """The images of some data sets, to be asked for one by one. Takes about 400 bytes an image."""

    def __init__(self, urls: tuple[str, ...], *, bits: int) -> None:
        """Reads the fingerprints. Raises DataError when a data set is none or has no fingerprints."""
        sets = [(url, Dataset.open(url)) for url in urls]
        prints = [(url, dataset, shard) for url, dataset in sets for shard in dataset.manifest.shards]
        for url, dataset, shard in prints:
            if not fingerprints.is_made(dataset.images, shard):
                raise DataError(
                    f"{url}: shard {shard.name} has no fingerprints; run: cloc data duplicates --data {url}"
                )
        read = [fingerprints.read(dataset, shard) for _, dataset, shard in prints]
        self._urls = urls
        self._set_N = np.repeat([urls.index(url) for url, _, _ in prints], [len(item) for item in read])
        self._keys_N = pa.chunked_array([item.keys_N for item in read], type=pa.string())
        self._files: dict[bytes, int] = {}
        for index, words in enumerate(words for item in read for words in item.sha256_N4):
            self._files.setdefault(words.tobytes(), index)
        phash_N = np.concatenate([np.empty(0, np.uint64), *(item.phash_N for item in read)])
        hashes, self._first = np.unique(phash_N, return_index=True)
        order = np.argsort(self._first)  # of equally near images the first is named
        self._first = self._first[order]
        self._index = HashIndex(hashes[order], bits=bits)

    @classmethod
    def load(cls, urls: tuple[str, ...], *, bits: int, digests: tuple[str, ...] = ()) -> "KnownImages":
        """The images of data sets; a process reads the same ones once.

        Args:
            urls: the data sets.
            bits: differing bits of perceptual hashes up to which pictures count as equal.
            digests: their `Dataset.digest`s, where they may change while this process lives.

        Raises:
            DataError: one is no data set or has no fingerprints.
        """
        return _load(urls, bits, digests)

    def match(self, *, sha256: bytes, phash: int) -> Match | None:
        """The image that this one duplicates: an equal file, else the nearest picture in reach, else None."""
        index = self._files.get(sha256)
        if index is not None:
            return self._match(index, 0, exact=True)
        pairs = self._index.nearest(np.array([phash], dtype=np.uint64))
        if not len(pairs.first_P):
            return None
        return self._match(int(self._first[pairs.second_P[0]]), int(pairs.distance_P[0]), exact=False)

    def _match(self, index: int, distance: int, *, exact: bool) -> Match:
        return Match(self._urls[self._set_N[index]], self._keys_N[index].as_py(), distance, exact)


@functools.lru_cache(maxsize=1)
def _load(urls: tuple[str, ...], bits: int, digests: tuple[str, ...]) -> KnownImages:
    del digests  # only tells one version of the data sets from another
    return KnownImages(urls, bits=bits)
