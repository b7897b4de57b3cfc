"""Protocol `region_recognition`: every labelled box, named among the data set's classes (METHOD, Evaluation).

The classes are the data set's whole list, written as plain names without a template, whether or not each occurs. A
region's class is the one whose name is nearest by cosine. Reported are mAcc (the mean over the classes that OCCUR of
the accuracy in each) and top-1 (the mean over regions): papers mix them up, and they are not comparable.

A tie of k classes for the first place gives 1 / k of a hit where the right class is among them: what an arbitrary
choice would get on average. Without regions both figures are 0 and `regions` is 0. Shapes: R regions, C classes, E
embedding width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloc.evaluation.bootstrap import Interval, macro_interval, ratio_interval

VERSION = 1
_ROWS = 4096  # regions scored at a time

Floats = npt.NDArray[np.floating]
Indices = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Recognition:
    """What a reader says of each region.

    Attributes:
        predicted: class index (the first of those that tie), shape (R,).
        credit: 1 for a hit, 0 for a miss, 1 / k for a tie of k that holds the right class, shape (R,).
    """

    predicted: Indices
    credit: Floats


@dataclass(frozen=True)
class RegionScores:
    """The protocol's figures, in [0, 1].

    Attributes:
        macc: mean over the classes that occur of the accuracy in each.
        top1: mean over regions.
        regions: R.
        classes: number of classes to choose from (chance is 1 / classes).
        per_class: accuracy and number of regions of each class that occurs.
        macc_interval, top1_interval: 95 %, over images.
    """

    macc: float
    top1: float
    regions: int
    classes: int
    per_class: dict[str, tuple[float, int]]
    macc_interval: Interval
    top1_interval: Interval


def recognize(regions_RE: Floats, classes_CE: Floats, labels_R: Indices) -> Recognition:
    """Names regions by the nearest class.

    Args:
        regions_RE, classes_CE: embeddings, normalised or not.
        labels_R: the right class of each region, below C.
    """
    classes_CE = _unit(classes_CE)
    predicted, credit = np.zeros(len(regions_RE), dtype=np.int64), np.zeros(len(regions_RE))
    for first in range(0, len(regions_RE), _ROWS):
        rows = slice(first, first + _ROWS)
        scores_RC = _unit(regions_RE[rows]) @ classes_CE.T
        best_R1 = scores_RC.max(axis=1, keepdims=True)
        ties_RC = scores_RC == best_R1
        right_R = ties_RC[np.arange(len(scores_RC)), labels_R[rows]]
        predicted[rows] = scores_RC.argmax(axis=1)
        credit[rows] = right_R / ties_RC.sum(axis=1)
    return Recognition(predicted=predicted, credit=credit)


def score(
    credit: Floats,
    labels_R: Indices,
    images_R: Indices,
    *,
    classes: Sequence[str],
    draws_SN: npt.NDArray[np.int64],
) -> RegionScores:
    """The protocol's figures from each region's credit.

    Args:
        credit: of each region, shape (R,).
        labels_R: the right class of each region.
        images_R: index of each region's image.
        classes: names of all classes.
        draws_SN: resamples of the images (`bootstrap.draws`).
    """
    counts_C = np.bincount(labels_R, minlength=len(classes))
    hits_C = np.bincount(labels_R, weights=credit, minlength=len(classes))
    occurring = np.flatnonzero(counts_C)
    accuracy = hits_C[occurring] / counts_C[occurring]
    images = draws_SN.shape[1]
    hits_N = np.bincount(images_R, weights=credit, minlength=images).astype(np.float64)
    counts_N = np.bincount(images_R, minlength=images).astype(np.float64)
    return RegionScores(
        macc=float(accuracy.mean()) if len(occurring) else 0.0,
        top1=float(credit.mean()) if len(credit) else 0.0,
        regions=len(credit),
        classes=len(classes),
        per_class={classes[c]: (float(a), int(counts_C[c])) for c, a in zip(occurring.tolist(), accuracy, strict=True)},
        macc_interval=macro_interval(credit, images_R, labels_R, draws_SN),
        top1_interval=ratio_interval(hits_N, counts_N, draws_SN),
    )


def _unit(x: Floats) -> Floats:
    norms = np.linalg.norm(x, axis=-1, keepdims=True)
    unit: Floats = x / np.where(norms > 0, norms, 1)
    return unit
