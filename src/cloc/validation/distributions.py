"""How quantities are distributed: histograms with fixed bins and their moments, and how far two of them are apart."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from cloc.pages.charts import Histogram


@dataclass
class Moments:
    """Sums for the mean and the standard deviation of a quantity; values that are not finite do not count."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Adds `values`, shape (N,)."""
        finite = values[np.isfinite(values)]
        self.count += len(finite)
        self.total += float(finite.sum())
        self.squares += float((finite**2).sum())

    def merge(self, other: "Moments") -> None:
        """Adds another one's sums."""
        self.count += other.count
        self.total += other.total
        self.squares += other.squares

    @property
    def mean(self) -> float:
        """The mean; 0 of nothing."""
        return self.total / max(self.count, 1)

    @property
    def std(self) -> float:
        """The standard deviation; 0 of nothing."""
        return float(np.sqrt(max(0.0, self.squares / max(self.count, 1) - self.mean**2)))

    def to_json(self) -> dict[str, float]:
        """The fields."""
        return asdict(self)


def histograms() -> dict[str, Histogram]:
    """Empty histograms of all quantities that a validation measures, by name."""
    numbers = (*(str(number) for number in range(12)), "12+")
    words = ("0", "1-4", "5-9", "10-14", "15-19", "20-29", "30-49", "50-99", "100+")
    phrase = ("0", "1", "2", "3", "4", "5-6", "7-9", "10-19", "20+")
    areas = ("<0.1%", "<0.5%", "<1%", "<2%", "<5%", "<10%", "<20%", "<50%", "≤100%")
    sides = ("<32", "<64", "<128", "<256", "<512", "<1024", "<2048", "2048+")
    aspects = ("<1:4", "<1:2.8", "<1:2", "<1:1.4", "<1:1", "<1.4:1", "<2:1", "<2.8:1", "<4:1", "4:1+")
    area_edges = (0, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.001)
    return {
        "regions_per_image": Histogram("Regions an image", numbers, tuple(float(number) for number in range(14))),
        "caption_words": Histogram(
            "Words a caption (without alt-text)", words, (0, 1, 5, 10, 15, 20, 30, 50, 100, 1e9)
        ),
        "region_words": Histogram("Words of a region", phrase, (0, 1, 2, 3, 4, 5, 7, 10, 20, 1e9)),
        "box_area": Histogram("Area of a box, share of its image", areas, area_edges),
        "box_center_x": _tenths("Centre of a box, from left to right"),
        "box_center_y": _tenths("Centre of a box, from top to bottom"),
        "box_width": _tenths("Width of a box, share of its image"),
        "box_height": _tenths("Height of a box, share of its image"),
        "box_aspect": Histogram(
            "Width of a box to its height, as shares", aspects, (-20, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 20)
        ),
        "score": _tenths("Score of a region, from"),
        "image_side": Histogram("Shorter side of an image, pixels", sides, (0, 32, 64, 128, 256, 512, 1024, 2048, 1e9)),
    }


def _tenths(title: str) -> Histogram:
    labels = tuple(f"{number / 10:.1f}" for number in range(10))
    return Histogram(title, labels, (*(number / 10 for number in range(10)), 1.001))


def distance(counts: Sequence[int], other: Sequence[int]) -> float:
    """Jensen-Shannon distance of two histograms with the same bins, from 0 (equal) to 1 (disjoint); 0 where either is
    empty. What two samples of one distribution differ by on average is taken off, so that small sets are not called
    different for being small.

    Source: Lin 1991; the expectation of the divergence of two samples of sizes n and m over k bins is, to first order,
    (k - 1) (1/n + 1/m) / (8 ln 2) bits.
    """
    n, m = sum(counts), sum(other)
    if not n or not m:
        return 0.0
    p, q = np.asarray(counts) / n, np.asarray(other) / m
    middle = (p + q) / 2
    used = middle > 0
    divergence = (_entropy_to(p[used], middle[used]) + _entropy_to(q[used], middle[used])) / 2
    noise = (int(used.sum()) - 1) * (1 / n + 1 / m) / (8 * np.log(2))
    return float(np.sqrt(min(1.0, max(0.0, divergence - noise))))


def _entropy_to(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
    """Kullback-Leibler divergence in bits; q is above 0."""
    return float(np.where(p > 0, p * np.log2(np.where(p > 0, p, 1) / q), 0).sum())
