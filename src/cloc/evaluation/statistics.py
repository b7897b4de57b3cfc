"""Bootstrap intervals over images, and paired differences of two models on the same images.

What is reported varies by which pictures the test split happens to hold. So images are drawn with replacement, and
everything that belongs to an image (its captions, its regions) comes with it. Each figure keeps its value in every
resample: two models of the same split are compared resample by resample (paired), which is far sharper than to look
whether two intervals overlap.

The same number of images and the same seed give the same draws for every model, run and machine.
Shapes: N images, S resamples, I items, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

RESAMPLES = 500
SEED = 0
LEVEL = 0.95
# A test of signs that wins on all of 5 images has p = 2 / 2**5 > 1 - LEVEL: with so few, nothing is called better.
MIN_IMAGES = 6
_NOISE = 1e-9  # what rounding alone can make of a difference of 0
_CHUNK = 1 << 21  # numbers held at a time (16 MiB): bounds memory whatever the number of items

Floats = npt.NDArray[np.floating]
Indices = npt.NDArray[np.integer]
Draws = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Interval:
    """Ends of a 95 % interval."""

    low: float
    high: float

    def to_json(self) -> list[float]:
        """`[low, high]`."""
        return [self.low, self.high]


@dataclass(frozen=True, eq=False)
class Estimate:
    """A figure, and how it varies with the images.

    Attributes:
        value: the figure on all images; 0 without items.
        samples_S: the figure in each resample; NaN where the resample has no item.
        n: items.
        images: images that hold an item.
    """

    value: float
    samples_S: npt.NDArray[np.float64]
    n: int
    images: int

    @property
    def interval(self) -> Interval:
        """Its 95 % interval; both ends are the value where no resample has an item."""
        return _percentiles(self.samples_S, otherwise=self.value)


@dataclass(frozen=True)
class Difference:
    """`a` less `b`, and which of them is better.

    Attributes:
        value: of the two figures on all images.
        interval: 95 %, over images, paired.
        better: "a" or "b" where the interval excludes 0 and at least `MIN_IMAGES` images hold items; else "".
    """

    value: float
    interval: Interval
    better: Literal["a", "b", ""]


def draws(images: int, *, resamples: int = RESAMPLES, seed: int = SEED) -> npt.NDArray[np.uint16]:
    """How often each resample holds each image: (S, N), rows sum to N; N = 0 gives (S, 0)."""
    drawn_SN = np.zeros((resamples, images), dtype=np.uint16)
    if images:
        random = np.random.default_rng(seed)
        for row in drawn_SN:
            row[:] = np.bincount(random.integers(images, size=images), minlength=images)
    return drawn_SN


def mean_estimate(values_I: Floats, images_I: Indices, draws_SN: Draws) -> Estimate:
    """Mean over items, e.g. of hits (an accuracy).

    Args:
        values_I: of each item.
        images_I: index of each item's image, below N.
        draws_SN: see `draws`.
    """
    return macro_estimate(values_I, images_I, np.zeros(len(values_I), dtype=np.int64), draws_SN)


def macro_estimate(values_I: Floats, images_I: Indices, classes_I: Indices, draws_SN: Draws) -> Estimate:
    """Mean over classes of the mean in each. The classes are those that occur; in a resample, those of the resample.

    Args:
        values_I, images_I, classes_I: value, image (below N) and class of each item.
        draws_SN: see `draws`.

    Raises:
        ValueError: the lengths differ.
    """
    values_I, images_I = np.asarray(values_I, dtype=np.float64), np.asarray(images_I, dtype=np.int64)
    if not len(values_I) == len(images_I) == len(classes_I):
        raise ValueError(f"items: {len(values_I)} values, {len(images_I)} images, {len(classes_I)} classes; must agree")
    if not len(values_I):
        return Estimate(0.0, np.full(len(draws_SN), np.nan), 0, 0)
    cells = _Cells.of(values_I, images_I, classes_I, images=draws_SN.shape[1])
    samples_S = np.empty(len(draws_SN))
    rows = max(1, _CHUNK // len(cells.image_K))
    for first in range(0, len(draws_SN), rows):
        samples_S[first : first + rows] = cells.means(draws_SN[first : first + rows, cells.image_K])
    value = float(cells.means(np.ones((1, len(cells.image_K))))[0])
    return Estimate(value, samples_S, len(values_I), len(np.unique(images_I)))


@dataclass(frozen=True, eq=False)
class _Cells:
    """What each image holds of each class (K of them): at most as many as items, and often far fewer.

    Attributes:
        image_K: its image.
        sums_K, counts_K: of its items.
        starts_C: first cell of each class; cells are in the order of classes.
    """

    image_K: Indices
    sums_K: Floats
    counts_K: Floats
    starts_C: Indices

    @classmethod
    def of(cls, values_I: Floats, images_I: Indices, classes_I: Indices, *, images: int) -> "_Cells":
        _, compact_I = np.unique(np.asarray(classes_I), return_inverse=True)
        cells, cell_I = np.unique(compact_I * images + images_I, return_inverse=True)
        class_K, image_K = np.divmod(cells, images)
        sums_K = np.bincount(cell_I, weights=values_I).astype(np.float64)
        starts_C = np.flatnonzero(np.diff(class_K, prepend=-1))
        return cls(image_K, sums_K, np.bincount(cell_I).astype(np.float64), starts_C)

    def means(self, weights_RK: npt.NDArray[Any]) -> Floats:
        """Mean over classes of the weighted mean in each, (R,); NaN where all weights of a row are 0."""
        totals_RC = np.add.reduceat(weights_RK * self.counts_K, self.starts_C, axis=1)
        sums_RC = np.add.reduceat(weights_RK * self.sums_K, self.starts_C, axis=1)
        means_RC = np.divide(sums_RC, totals_RC, out=np.zeros_like(sums_RC), where=totals_RC > 0)
        occurring_R = (totals_RC > 0).sum(axis=1)
        means_R: Floats = np.where(occurring_R > 0, means_RC.sum(axis=1) / np.maximum(occurring_R, 1), np.nan)
        return means_R


def difference(a: Estimate, b: Estimate, *, higher_is_better: bool = True) -> Difference:
    """`a` less `b`, paired: both must come from the same draws of the same images.

    Args:
        higher_is_better: False for figures like a rank.

    Raises:
        ValueError: the numbers of resamples differ.
    """
    if len(a.samples_S) != len(b.samples_S):
        raise ValueError(f"paired figures need the same resamples, got {len(a.samples_S)} and {len(b.samples_S)}")
    value = a.value - b.value if a.n and b.n else 0.0
    interval = _percentiles(a.samples_S - b.samples_S, otherwise=value)
    better: Literal["a", "b", ""] = ""
    if min(a.images, b.images) >= MIN_IMAGES:
        if interval.low > _NOISE:
            better = "a" if higher_is_better else "b"
        elif interval.high < -_NOISE:
            better = "b" if higher_is_better else "a"
    return Difference(value, interval, better)


def scores(figures: Mapping[str, Estimate]) -> dict[str, Any]:
    """Figures that share their items as they stand in `metrics.json`: values by name, "n", "images", "interval"."""
    return {
        **{name: estimate.value for name, estimate in figures.items()},
        "n": max((estimate.n for estimate in figures.values()), default=0),
        "images": max((estimate.images for estimate in figures.values()), default=0),
        "interval": {name: estimate.interval.to_json() for name, estimate in figures.items()},
    }


def _percentiles(values: Floats, *, otherwise: float) -> Interval:
    known = values[~np.isnan(values)]
    if not len(known):
        return Interval(otherwise, otherwise)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(known, [tail, 100 - tail])
    return Interval(float(low), float(high))
