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

import numpy as np

from cloc.evaluation.ranking import KS, rank
from cloc.evaluation.statistics import Draws, Estimate, Floats, Indices, mean_estimate

NAME = "retrieval"
VERSION = 1


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
        image_to_text=direction(
            images_NE, texts_TE, group_Q=owner_N, group_X=image_of_T, image_Q=owner_N, draws_SN=draws_SN
        ),
        text_to_image=direction(
            texts_TE, images_NE, group_Q=image_of_T, group_X=owner_N, image_Q=image_of_T, draws_SN=draws_SN
        ),
    )


def direction(
    queries_QE: Floats, candidates_XE: Floats, *, group_Q: Indices, group_X: Indices, image_Q: Indices, draws_SN: Draws
) -> Direction:
    """Scores one way; see `ranking.rank`.

    Args:
        image_Q: image that each query is drawn with.
    """
    ranking = rank(queries_QE, candidates_XE, group_Q=group_Q, group_X=group_X)
    return Direction(
        figures={f"R@{k}": mean_estimate(ranking.credit[k], image_Q, draws_SN) for k in KS},
        queries=len(queries_QE),
        candidates=len(candidates_XE),
        credit=ranking.credit[1],
        nearest=ranking.nearest,
    )
