"""Histograms: counted shard by shard in memory that does not grow, shown as bars by the macro `bars`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass
class Histogram:
    """Counts over fixed bins; values outside the edges go into the first or last bin.

    Attributes:
        title: what is counted.
        labels: one a bin.
        edges: ascending, one more than labels.
    """

    title: str
    labels: tuple[str, ...]
    edges: tuple[float, ...]
    counts: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros(len(self.labels), dtype=np.int64)

    def add(self, values: npt.NDArray[np.float64], *, times: int = 1) -> None:
        """Counts the finite ones of `values`, shape (N,), each so many times."""
        inside = np.clip(values[np.isfinite(values)], self.edges[0], np.nextafter(self.edges[-1], -np.inf))
        self.counts += times * np.histogram(inside, bins=np.asarray(self.edges))[0]


@dataclass(frozen=True)
class Bar:
    """A bar: `height` in percent of the highest one, `share` of all that was counted in [0, 1]."""

    label: str
    count: int
    height: float
    share: float


@dataclass(frozen=True)
class Chart:
    """A histogram as it is shown."""

    title: str
    bars: Sequence[Bar]


def chart(histogram: Histogram) -> Chart:
    """The bars of a histogram; all are flat where nothing was counted."""
    highest, total = max(int(histogram.counts.max()), 1), max(int(histogram.counts.sum()), 1)
    bars = [
        Bar(label=label, count=int(count), height=100 * int(count) / highest, share=int(count) / total)
        for label, count in zip(histogram.labels, histogram.counts, strict=True)
    ]
    return Chart(title=histogram.title, bars=bars)
