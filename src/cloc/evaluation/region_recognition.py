"""Protocol `region_recognition`: every labelled box, named among the data set's classes (METHOD, Evaluation).

The classes are the data set's whole list, written as plain names without a template, whether or not each occurs. A
region's class is the one whose name is nearest by cosine. Reported are mAcc (the mean over the classes that OCCUR of
the accuracy in each) and top-1 (the mean over regions): papers mix them up, and they are not comparable.

A tie of k classes for the first place gives 1 / k of a hit where the right class is among them: what an arbitrary
choice would get on average. Without regions both figures are 0 and `regions` is 0. Shapes: R regions, C classes, E
embedding width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cloc.evaluation.statistics import Draws, Estimate, Floats, Indices, macro_estimate, mean_estimate

NAME = "region_recognition"
VERSION = 1
_ROWS = 4096  # regions scored at a time


@dataclass(frozen=True)
class Recognition:
    """What a reader says of each region.

    Attributes:
        predicted: class index (the first of those that tie), shape (R,).
        credit: 1 for a hit, 0 for a miss, 1 / k for a tie of k that holds the right class, shape (R,).
    """

    predicted: Indices
    credit: Floats


@dataclass(frozen=True, eq=False)
class RegionScores:
    """The protocol's figures, in [0, 1].

    Attributes:
        figures: "mAcc", the mean over the classes that occur of the accuracy in each; "top1", the mean over regions.
        classes: number of classes to choose from (chance is 1 / classes).
        per_class: accuracy and number of regions of each class that occurs.
    """

    figures: Mapping[str, Estimate]
    classes: int
    per_class: Mapping[str, tuple[float, int]]


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
    credit: Floats, labels_R: Indices, images_R: Indices, *, classes: Sequence[str], draws_SN: Draws
) -> RegionScores:
    """The protocol's figures from each region's credit.

    Args:
        credit: of each region, shape (R,).
        labels_R: the right class of each region.
        images_R: index of each region's image.
        classes: names of all classes.
        draws_SN: resamples of the images (`statistics.draws`).
    """
    counts_C = np.bincount(labels_R, minlength=len(classes))
    hits_C = np.bincount(labels_R, weights=credit, minlength=len(classes))
    occurring = np.flatnonzero(counts_C)
    return RegionScores(
        figures={
            "mAcc": macro_estimate(credit, images_R, labels_R, draws_SN),
            "top1": mean_estimate(credit, images_R, draws_SN),
        },
        classes=len(classes),
        per_class={classes[c]: (float(hits_C[c] / counts_C[c]), int(counts_C[c])) for c in occurring.tolist()},
    )


def _unit(x: Floats) -> Floats:
    norms = np.linalg.norm(x, axis=-1, keepdims=True)
    unit: Floats = x / np.where(norms > 0, norms, 1)
    return unit
