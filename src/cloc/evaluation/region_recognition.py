"""Protocol `region_recognition`: every labelled box, named among the data set's classes (METHOD, Evaluation).

The classes are the data set's whole list, written as plain names without a template, whether or not each occurs. A
region's class is the one whose name is nearest by cosine. Reported are mAcc (the mean over the classes that OCCUR of
the accuracy in each) and top-1 (the mean over regions): papers mix them up, and they are not comparable.

A tie of k classes for the first place gives 1 / k of a hit where the right class is among them: what an arbitrary
choice would get on average. Without regions both figures are 0 of 0 regions. The same by the size of the box, with
COCO's bounds (a box of just 32 x 32 pixels is medium, of 96 x 96 large); there a class occurs that has a box of the
size. Shapes: R regions, C classes, E embedding width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloc.boxes import BoxesXYXY, area
from cloc.evaluation.ranking import chunks, unit
from cloc.evaluation.statistics import Draws, Estimate, Floats, Indices, macro_estimate, mean_estimate

NAME = "region_recognition"
VERSION = 1
# COCO's bounds between small, medium and large boxes: area in pixels of the original image.
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, float("inf"))}


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
        by_size: the same figures of the regions of each size of `SIZES` that occurs.
    """

    figures: Mapping[str, Estimate]
    classes: int
    per_class: Mapping[str, tuple[float, int]]
    by_size: Mapping[str, Mapping[str, Estimate]]


def recognize(regions_RE: Floats, classes_CE: Floats, labels_R: Indices) -> Recognition:
    """Names regions by the nearest class.

    Args:
        regions_RE, classes_CE: embeddings, normalised or not.
        labels_R: the right class of each region, below C.
    """
    classes_CE = unit(classes_CE)
    predicted, credit = np.zeros(len(regions_RE), dtype=np.int64), np.zeros(len(regions_RE))
    for rows in chunks(len(regions_RE), columns=len(classes_CE)):
        scores_RC = unit(regions_RE[rows]) @ classes_CE.T
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
    draws_SN: Draws,
    areas_R: Floats | None = None,
) -> RegionScores:
    """The protocol's figures from each region's credit.

    Args:
        credit: of each region, shape (R,).
        labels_R: the right class of each region.
        images_R: index of each region's image.
        classes: names of all classes.
        draws_SN: resamples of the images (`statistics.draws`).
        areas_R: area of each box in pixels of the original image; without, nothing is told by size.
    """
    counts_C = np.bincount(labels_R, minlength=len(classes))
    hits_C = np.bincount(labels_R, weights=credit, minlength=len(classes))
    occurring = np.flatnonzero(counts_C)
    return RegionScores(
        figures=_figures(credit, labels_R, images_R, draws_SN),
        classes=len(classes),
        per_class={classes[c]: (float(hits_C[c] / counts_C[c]), int(counts_C[c])) for c in occurring.tolist()},
        by_size={} if areas_R is None else _by_size(credit, labels_R, images_R, areas_R, draws_SN),
    )


def _by_size(
    credit: Floats, labels_R: Indices, images_R: Indices, areas_R: Floats, draws_SN: Draws
) -> dict[str, dict[str, Estimate]]:
    found: dict[str, dict[str, Estimate]] = {}
    for name, (low, high) in SIZES.items():
        rows = np.flatnonzero((areas_R >= low) & (areas_R < high))
        if len(rows):
            found[name] = _figures(credit[rows], labels_R[rows], images_R[rows], draws_SN)
    return found


def _figures(credit: Floats, labels_R: Indices, images_R: Indices, draws_SN: Draws) -> dict[str, Estimate]:
    return {
        "mAcc": macro_estimate(credit, images_R, labels_R, draws_SN),
        "top1": mean_estimate(credit, images_R, draws_SN),
    }


def box_areas(boxes_R4: BoxesXYXY, *, widths_R: Indices, heights_R: Indices) -> Floats:
    """Areas in pixels of boxes that are xyxy in [0, 1] of images of these sides."""
    return area(boxes_R4) * np.asarray(widths_R, dtype=np.float64) * np.asarray(heights_R, dtype=np.float64)


def confusion(labels_R: Indices, predicted_R: Indices, *, classes: int) -> npt.NDArray[np.int64]:
    """How many regions of each class (row) were called each class (column): (C, C)."""
    cells = np.asarray(labels_R, dtype=np.int64) * classes + np.asarray(predicted_R, dtype=np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)
