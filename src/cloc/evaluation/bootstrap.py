"""Bootstrap intervals over images: what is reported varies by which pictures the test split happens to hold.

Images are drawn with replacement, and everything that belongs to an image (its captions, its regions) comes with it.
The same seed gives the same draws for every model of a split, so that their intervals are of the same pictures.
Shapes: N images, S resamples, C classes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 500
SEED = 0
LEVEL = 0.95
_CHUNK = 50  # resamples at a time: bounds memory where there are many classes

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Interval:
    """Ends of a 95 % interval."""

    low: float
    high: float

    def to_json(self) -> list[float]:
        """`[low, high]`."""
        return [self.low, self.high]


def draws(images: int, *, resamples: int = RESAMPLES, seed: int = SEED) -> npt.NDArray[np.int64]:
    """How often each resample holds each image: (S, N), rows sum to N; N = 0 gives (S, 0)."""
    if not images:
        return np.zeros((resamples, 0), dtype=np.int64)
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)


def ratio_interval(sums_N: Floats, counts_N: Floats, draws_SN: npt.NDArray[np.int64]) -> Interval:
    """Interval of sum / count, e.g. of an accuracy: hits and items of each image.

    Resamples without any item are left out; without any item at all both ends are 0.
    """
    weights = draws_SN.astype(np.float64)
    totals = weights @ counts_N
    kept = totals > 0
    return _percentiles((weights @ sums_N)[kept] / totals[kept])


def macro_interval(
    hits: Floats,
    images: npt.NDArray[np.integer],
    classes: npt.NDArray[np.integer],
    draws_SN: npt.NDArray[np.int64],
) -> Interval:
    """Interval of the mean over classes of the accuracy in each; a resample's classes are those that occur in it.

    Args:
        hits: credit of each item, in [0, 1].
        images, classes: index of each item's image (below N) and class.
        draws_SN: see `draws`.
    """
    present, compact = np.unique(classes, return_inverse=True)
    if not len(present):
        return Interval(0.0, 0.0)
    cells = np.asarray(images, dtype=np.int64) * len(present) + compact
    size = draws_SN.shape[1] * len(present)
    hits_NC = np.bincount(cells, weights=hits, minlength=size).reshape(-1, len(present))
    counts_NC = np.bincount(cells, minlength=size).reshape(-1, len(present)).astype(np.float64)
    means: list[Floats] = []
    for first in range(0, len(draws_SN), _CHUNK):
        weights = draws_SN[first : first + _CHUNK].astype(np.float64)
        totals = weights @ counts_NC
        accuracy = np.divide(weights @ hits_NC, totals, out=np.zeros_like(totals), where=totals > 0)
        occurring = (totals > 0).sum(axis=1)
        means.append(accuracy.sum(axis=1)[occurring > 0] / occurring[occurring > 0])
    return _percentiles(np.concatenate(means))


def _percentiles(values: Floats) -> Interval:
    if not len(values):
        return Interval(0.0, 0.0)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return Interval(float(low), float(high))
