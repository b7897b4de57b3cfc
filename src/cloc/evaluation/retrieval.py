"""Protocol `retrieval`: an image among captions and a caption among images, R@1, R@5, R@10 (METHOD, Evaluation).

Every image has one or more captions (COCO has five). Image to text: a hit at K when ANY of its captions is among the K
nearest of all captions. Text to image: every caption is a query, a hit when its image is among the K nearest of all
images. Where K is at least the number of candidates, every query is a hit: the figures are of use only together with
the number of candidates, which is reported.

Candidates that tie stand in random order: a query's credit is the probability that a right one is among the first K.
So a model that gives everything the same embedding gets chance, and two images with word for word the same caption
share the hit. Shapes: N images, T captions, E embedding width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb

import numpy as np
import numpy.typing as npt

from cloc.evaluation.statistics import Draws, Estimate, Floats, Indices, mean_estimate

NAME = "retrieval"
VERSION = 1
KS = (1, 5, 10)
_ROWS = 512  # queries scored at a time


@dataclass(frozen=True, eq=False)
class Direction:
    """One way of the retrieval.

    Attributes:
        figures: "R@1", "R@5", "R@10", in [0, 1].
        queries, candidates: how many of each.
        credit: of each query at K = 1.
        nearest: index of each query's nearest candidate.
    """

    figures: Mapping[str, Estimate]
    queries: int
    candidates: int
    credit: Floats
    nearest: Indices


@dataclass(frozen=True)
class RetrievalScores:
    """Both ways."""

    image_to_text: Direction
    text_to_image: Direction


def score(images_NE: Floats, texts_TE: Floats, image_of_T: Indices, *, draws_SN: Draws) -> RetrievalScores:
    """Scores both ways.

    Args:
        images_NE, texts_TE: embeddings, normalised to length 1.
        image_of_T: the image that each caption belongs to; every image must have a caption.
        draws_SN: resamples of the images (`statistics.draws`).

    Raises:
        ValueError: an image has no caption.
    """
    n_images = len(images_NE)
    if len(np.unique(image_of_T)) != n_images:
        raise ValueError(f"retrieval: {n_images - len(np.unique(image_of_T))} of {n_images} images have no caption")
    owner_N = np.arange(n_images)
    return RetrievalScores(
        image_to_text=_direction(images_NE, texts_TE, owner_N, image_of_T, owner_N, draws_SN),
        text_to_image=_direction(texts_TE, images_NE, image_of_T, owner_N, image_of_T, draws_SN),
    )


def _direction(
    queries_QE: Floats,
    candidates_XE: Floats,
    group_Q: Indices,
    group_X: Indices,
    image_Q: Indices,
    draws_SN: Draws,
) -> Direction:
    """Candidates of a query's own group (here: image) are right."""
    credit = {k: np.zeros(len(queries_QE)) for k in KS}
    nearest = np.zeros(len(queries_QE), dtype=np.int64)
    for first in range(0, len(queries_QE), _ROWS):
        rows = slice(first, first + _ROWS)
        scores_QX = queries_QE[rows] @ candidates_XE.T
        right_QX = group_Q[rows, None] == group_X[None, :]
        nearest[rows] = scores_QX.argmax(axis=1)
        chunk = hits(scores_QX, right_QX)
        for k in KS:
            credit[k][rows] = chunk[k]
    return Direction(
        figures={f"R@{k}": mean_estimate(credit[k], image_Q, draws_SN) for k in KS},
        queries=len(queries_QE),
        candidates=len(candidates_XE),
        credit=credit[1],
        nearest=nearest,
    )


def hits(scores_QX: Floats, right_QX: npt.NDArray[np.bool_]) -> dict[int, Floats]:
    """Credit of each query at each K of `KS`: probability that a right candidate is among the K best.

    Each query needs at least one right candidate.
    """
    best_Q1 = np.where(right_QX, scores_QX, -np.inf).max(axis=1, keepdims=True)
    above_Q = (scores_QX > best_Q1).sum(axis=1)  # all of them wrong
    tied_QX = scores_QX == best_Q1
    right_Q, wrong_Q = (tied_QX & right_QX).sum(axis=1), (tied_QX & ~right_QX).sum(axis=1)
    credit: dict[int, Floats] = {k: (above_Q < k).astype(np.float64) for k in KS}
    for query in np.flatnonzero(wrong_Q):
        right, wrong = int(right_Q[query]), int(wrong_Q[query])
        for k in KS:
            places = max(0, k - int(above_Q[query]))
            # None of the first `places` of the tied is right: all of them are drawn from the wrong ones.
            missed = comb(wrong, places) / comb(right + wrong, places) if places <= wrong else 0.0
            credit[k][query] = 1.0 - missed
    return credit
