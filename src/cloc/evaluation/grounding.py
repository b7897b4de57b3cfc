"""Protocol `grounding`: a region's text as a phrase, the model's box for it against the labelled one (METHOD).

Boxes are compared in the frame of the ORIGINAL image. Only phrases that stand once in their image are asked (compared
lower-cased, white space trimmed): with two boxes of the same text the right answer would be either. The others are
counted as ambiguous. Accuracy is the share of phrases whose box has an IoU of at least 0.5.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloc.boxes import BoxesXYXY, area
from cloc.evaluation.bootstrap import Interval, ratio_interval

VERSION = 1
THRESHOLD = 0.5

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class GroundingScores:
    """The protocol's figures, in [0, 1]; 0 without phrases.

    Attributes:
        accuracy: share of phrases with IoU >= 0.5.
        mean_iou: mean IoU.
        phrases: number asked.
        accuracy_interval, mean_iou_interval: 95 %, over images.
        iou: of each phrase.
    """

    accuracy: float
    mean_iou: float
    phrases: int
    accuracy_interval: Interval
    mean_iou_interval: Interval
    iou: Floats


def normalize_phrase(text: str) -> str:
    """What two phrases are compared by."""
    return " ".join(text.lower().split())


def unambiguous(phrases: Sequence[str]) -> list[int]:
    """Numbers of the phrases of ONE image that are not empty and stand there once."""
    seen = Counter(normalize_phrase(phrase) for phrase in phrases)
    return [i for i, phrase in enumerate(phrases) if normalize_phrase(phrase) and seen[normalize_phrase(phrase)] == 1]


def paired_iou(a: BoxesXYXY, b: BoxesXYXY) -> Floats:
    """IoU of each row of `a` with the same row of `b`: (N, 4), (N, 4) -> (N,); 0 where both are empty."""
    sides = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None)
    overlap = sides[:, 0] * sides[:, 1]
    union = area(a) + area(b) - overlap
    ratio: Floats = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
    return ratio


def score(
    predicted: BoxesXYXY,
    labelled: BoxesXYXY,
    images: npt.NDArray[np.integer],
    *,
    draws_SN: npt.NDArray[np.int64],
) -> GroundingScores:
    """Scores predicted boxes.

    Args:
        predicted, labelled: box of each phrase, (P, 4), xyxy in [0, 1] of the original image.
        images: index of each phrase's image.
        draws_SN: resamples of the images (`bootstrap.draws`).
    """
    iou = paired_iou(predicted, labelled)
    hit = (iou >= THRESHOLD).astype(np.float64)
    n = draws_SN.shape[1]
    counts_N = np.bincount(images, minlength=n).astype(np.float64)

    def interval(values: Floats) -> Interval:
        return ratio_interval(np.bincount(images, weights=values, minlength=n).astype(np.float64), counts_N, draws_SN)

    return GroundingScores(
        accuracy=float(hit.mean()) if len(hit) else 0.0,
        mean_iou=float(iou.mean()) if len(iou) else 0.0,
        phrases=len(iou),
        accuracy_interval=interval(hit),
        mean_iou_interval=interval(iou),
        iou=iou,
    )
