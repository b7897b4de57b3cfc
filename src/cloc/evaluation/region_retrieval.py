"""Protocol `region_retrieval`: a region among texts and a text among regions, R@1, R@5, R@10 (METHOD, Evaluation).

The candidates are all region texts of the split. Texts that are equal (lower-cased, white space trimmed) are one
candidate: a class name that stands at a thousand boxes is no thousand answers. Region to text: a hit at K when the
region's own text is among the K nearest. Text to region: every distinct text is a query, a hit when ANY region with
that text is among the K nearest of all regions. Ties as in `retrieval`.

In a resample a text counts as often as the image where it first stands: with the texts of one image each, that is the
image's own weight. Without regions all figures are 0 of 0 queries.
Shapes: R regions, U distinct texts, E embedding width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cloc.evaluation.grounding import normalize_phrase
from cloc.evaluation.retrieval import Direction, direction
from cloc.evaluation.statistics import Draws, Floats, Indices

NAME = "region_retrieval"
VERSION = 1


@dataclass(frozen=True)
class DistinctTexts:
    """Texts that are compared once.

    Attributes:
        texts: as first written, to be encoded.
        number: of each given text, below `len(texts)`.
    """

    texts: tuple[str, ...]
    number: tuple[int, ...]


@dataclass(frozen=True)
class RegionRetrievalScores:
    """Both ways; the figures are "R@1", "R@5", "R@10"."""

    region_to_text: Direction
    text_to_region: Direction


def distinct(texts: Sequence[str]) -> DistinctTexts:
    """Numbers texts so that equal ones share a number.

    Raises:
        ValueError: a text is empty.
    """
    first: dict[str, int] = {}
    written: list[str] = []
    number: list[int] = []
    for text in texts:
        key = normalize_phrase(text)
        if not key:
            raise ValueError("region_retrieval: a text is empty; leave regions without text out")
        if key not in first:
            first[key] = len(written)
            written.append(text)
        number.append(first[key])
    return DistinctTexts(tuple(written), tuple(number))


def score(
    regions_RE: Floats, texts_UE: Floats, text_of_R: Indices, images_R: Indices, *, draws_SN: Draws
) -> RegionRetrievalScores:
    """Scores both ways; memory does not grow with R x U.

    Args:
        regions_RE, texts_UE: embeddings of regions and of distinct texts, normalised to length 1.
        text_of_R: number of each region's text (see `distinct`); every text must have a region.
        images_R: index of each region's image.
        draws_SN: resamples of the images (`statistics.draws`).

    Raises:
        ValueError: a text has no region.
    """
    text_of_R, images_R = np.asarray(text_of_R, dtype=np.int64), np.asarray(images_R, dtype=np.int64)
    asked, first_U = np.unique(text_of_R, return_index=True)
    if len(asked) != len(texts_UE):
        raise ValueError(f"region_retrieval: {len(texts_UE) - len(asked)} of {len(texts_UE)} texts have no region")
    own_U = np.arange(len(texts_UE))
    return RegionRetrievalScores(
        region_to_text=direction(
            regions_RE, texts_UE, group_Q=text_of_R, group_X=own_U, image_Q=images_R, draws_SN=draws_SN
        ),
        text_to_region=direction(
            texts_UE, regions_RE, group_Q=own_U, group_X=text_of_R, image_Q=images_R[first_U], draws_SN=draws_SN
        ),
    )
