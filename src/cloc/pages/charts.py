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
    """A bar.

    Attributes:
        label, count: of the bin.
        height: in percent of the chart's.
        share: of all that was counted, in [0, 1].
        other_height, other_share: of the same bin in the histogram that is compared with; None without one.
    """

    label: str
    count: int
    height: float
    share: float
    other_height: float | None = None
    other_share: float | None = None


@dataclass(frozen=True)
class Chart:
    """A histogram as it is shown."""

    title: str
    bars: Sequence[Bar]


def chart(histogram: Histogram, *, other: Sequence[int] | None = None) -> Chart:
    """The bars of a histogram; all are flat where nothing was counted.

    Args:
        histogram: what is shown.
        other: counts in the same bins to compare with, of any total: shares are compared.
    """
    shares = _shares(histogram.counts)
    others = None if other is None else _shares(np.asarray(other))
    highest = max(float(shares.max()), 0.0 if others is None else float(others.max())) or 1.0
    bars = [
        Bar(
            label=label,
            count=int(histogram.counts[number]),
            height=100 * float(shares[number]) / highest,
            share=float(shares[number]),
            other_height=None if others is None else 100 * float(others[number]) / highest,
            other_share=None if others is None else float(others[number]),
        )
        for number, label in enumerate(histogram.labels)
    ]
    return Chart(title=histogram.title, bars=bars)


def _shares(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return counts / max(int(counts.sum()), 1)
