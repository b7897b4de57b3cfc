"""Protocol `grounding`: a region's text as a phrase, the model's box for it against the labelled one (METHOD).

Boxes are compared in the frame of the ORIGINAL image. Only phrases that stand once in their image are asked (compared
lower-cased, white space trimmed): with two boxes of the same text the right answer would be either. The others are
counted as ambiguous. Accuracy is the share of phrases whose box has an IoU of at least 0.5.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cloc.boxes import BoxesXYXY, area
from cloc.evaluation.statistics import Draws, Estimate, Floats, Indices, mean_estimate

NAME = "grounding"
VERSION = 1
THRESHOLD = 0.5


@dataclass(frozen=True, eq=False)
class GroundingScores:
    """The protocol's figures, in [0, 1]; 0 without phrases.

    Attributes:
        figures: "acc@0.5", the share of phrases with IoU >= 0.5, and "mean_iou".
        iou: of each phrase.
    """

    figures: Mapping[str, Estimate]
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


def score(predicted: BoxesXYXY, labelled: BoxesXYXY, images: Indices, *, draws_SN: Draws) -> GroundingScores:
    """Scores predicted boxes.

    Args:
        predicted, labelled: box of each phrase, (P, 4), xyxy in [0, 1] of the original image.
        images: index of each phrase's image.
        draws_SN: resamples of the images (`statistics.draws`).
    """
    iou = paired_iou(predicted, labelled)
    return GroundingScores(
        figures={
            "acc@0.5": mean_estimate((iou >= THRESHOLD).astype(np.float64), images, draws_SN),
            "mean_iou": mean_estimate(iou, images, draws_SN),
        },
        iou=iou,
    )
