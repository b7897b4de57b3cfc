"""Sums over streams of texts in memory that does not grow: the most common ones, and a sample of the distinct ones.

Both can be split and merged, so that shards may be read anywhere: `DistinctTexts` gives the same whatever the split,
`MostCommon` the same for the same split.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

# Texts that the search for the most common one remembers: its count is too low by at most 1 / CAPACITY of all.
CAPACITY = 2000
# Distinct texts in a sample: shares of them have a standard error of at most 0.8 %.
SAMPLE = 4096
_TEXT_CUT = 2000


@dataclass
class MostCommon:
    """The most common of a stream of values (mergeable Misra-Gries summary).

    Attributes:
        capacity: values remembered at most.
        total: values seen.
        counts: lower bounds of how often they came, too low by at most `total` / `capacity`.
    """

    capacity: int = CAPACITY
    total: int = 0
    counts: Counter[Any] = field(default_factory=Counter)

    def add(self, values: Iterable[Any]) -> None:
        """Counts a shard's values."""
        self._take(Counter(values))

    def merge(self, other: "MostCommon") -> None:
        """Adds what another one saw."""
        self.total += other.total - other.counts.total()
        self._take(other.counts)

    def _take(self, counts: Counter[Any]) -> None:
        self.total += counts.total()
        self.counts.update(counts)
        if len(self.counts) > self.capacity:
            spare = self.counts.most_common(self.capacity + 1)[-1][1]
            self.counts = Counter({value: count - spare for value, count in self.counts.items() if count > spare})

    def top(self) -> tuple[Any, int]:
        """The most common value and (a lower bound of) how often it came; ("", 0) when there was none."""
        return self.counts.most_common(1)[0] if self.counts else ("", 0)

    @property
    def top_share(self) -> float:
        """Share of the most common value; 0 when there was none."""
        return self.top()[1] / max(self.total, 1)

    def to_json(self) -> dict[str, Any]:
        """JSON values that `from_json` takes."""
        return {"capacity": self.capacity, "total": self.total, "counts": list(self.counts.items())}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "MostCommon":
        """The inverse of `to_json`."""
        return cls(body["capacity"], body["total"], Counter(dict(body["counts"])))


class CommonTexts(MostCommon):
    """The most common texts; long ones go by their beginning."""

    def add(self, values: Iterable[str]) -> None:
        """Counts a shard's texts."""
        super().add(text[:_TEXT_CUT] for text in values)


@dataclass
class DistinctTexts:
    """A sample of the distinct texts of a stream with their exact counts: those with the smallest hashes.

    A text that is among the `capacity` smallest hashes of all was so in every part, hence its count is exact and the
    sample does not depend on how the stream was split (bottom-k sampling).

    Attributes:
        capacity: texts kept at most.
        total: texts seen.
        hashes: of the kept ones, ascending, shape (N,).
        counts: how often each came, shape (N,).
        texts: the kept ones, cut after 2,000 characters.
    """

    capacity: int = SAMPLE
    total: int = 0
    hashes: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    texts: list[str] = field(default_factory=list)

    def add(self, texts: pd.Series) -> None:
        """Counts a shard's texts, none of them missing."""
        values = texts.to_numpy(dtype=object)
        hashes, first, counts = np.unique(
            pd.util.hash_array(values, categorize=False), return_index=True, return_counts=True
        )
        self.total += len(values)
        kept = slice(0, self.capacity)
        self._take(hashes[kept], counts[kept], [values[place][:_TEXT_CUT] for place in first[kept]])

    def merge(self, other: "DistinctTexts") -> None:
        """Adds what another one saw."""
        self.total += other.total
        self._take(other.hashes, other.counts, other.texts)

    def _take(self, hashes: npt.NDArray[np.uint64], counts: npt.NDArray[np.int64], texts: list[str]) -> None:
        both = np.concatenate([self.hashes, hashes])
        unique, first, inverse = np.unique(both, return_index=True, return_inverse=True)
        summed = np.zeros(len(unique), dtype=np.int64)
        np.add.at(summed, inverse, np.concatenate([self.counts, counts]))
        all_texts = [*self.texts, *texts]
        self.hashes, self.counts = unique[: self.capacity], summed[: self.capacity]
        self.texts = [all_texts[place] for place in first[: self.capacity]]

    @property
    def distinct(self) -> float:
        """Number of distinct texts; exact up to `capacity`, then an estimate with an error of 1 / sqrt(capacity)."""
        if len(self.hashes) < self.capacity:
            return float(len(self.hashes))
        return (self.capacity - 1) / ((float(self.hashes[-1]) + 1) / 2.0**64)

    @property
    def repeated_share(self) -> float:
        """Share of the stream whose text came more than once; an estimate where `distinct` is one."""
        if not self.total:
            return 0.0
        singles = self.distinct * float((self.counts == 1).mean())
        return max(0.0, 1.0 - singles / self.total)

    @property
    def repeated_sample(self) -> float:
        """Share of the sampled texts that came more than once: 0 exactly where nothing did."""
        return float((self.counts > 1).mean()) if len(self.counts) else 0.0

    def sum_over(
        self, function: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float64]], common: MostCommon
    ) -> float:
        """Sum of `function(count)` over all distinct texts: those that `common` knows to be frequent by its counts, the
        others by the sample."""
        frequent = {text: count for text, count in common.counts.items() if count * common.capacity >= 4 * common.total}
        rest = np.asarray(
            [count for text, count in zip(self.texts, self.counts, strict=True) if text not in frequent], dtype=np.int64
        )
        scale = self.distinct / max(len(self.hashes), 1)
        return float(function(np.asarray(list(frequent.values()), dtype=np.int64)).sum() + scale * function(rest).sum())

    def to_json(self) -> dict[str, Any]:
        """JSON values that `from_json` takes."""
        return {
            "capacity": self.capacity,
            "total": self.total,
            "hashes": [int(value) for value in self.hashes],
            "counts": [int(value) for value in self.counts],
            "texts": self.texts,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "DistinctTexts":
        """The inverse of `to_json`."""
        return cls(
            body["capacity"],
            body["total"],
            np.asarray(body["hashes"], dtype=np.uint64),
            np.asarray(body["counts"], dtype=np.int64),
            list(body["texts"]),
        )
