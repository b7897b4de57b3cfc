"""Protocol `attributes`: a region's own text against texts that differ from it in attributes (FG-OVD's hard negatives).

A region of a split may carry negatives: its own sentence with one, two or three attributes swapped (color, material,
pattern ...), which are its levels (FG-OVD: hard, medium, easy). At each level the region's embedding is compared with
its own text and with its negatives of that level: a hit when its own is the nearest, and the rank of its own among
them. Every region counts once, however many negatives it has; the mean number of negatives and chance, the mean of
1 / (negatives + 1), are reported, since figures of other numbers are not comparable.

A tie of k texts for the first place gives 1 / k of a hit; tied texts share the mean of their ranks. Negatives that
equal the region's own text, or each other, do not count. A region without negatives at a level is not asked there.
Shapes: P regions with a text, U texts, J negatives, E embedding width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cloc.evaluation.ranking import chunks
from cloc.evaluation.statistics import Draws, Estimate, Floats, Indices, mean_estimate

NAME = "attributes"
VERSION = 1


@dataclass(frozen=True, eq=False)
class Negatives:
    """Negatives of one level, flat: `text_J` is a negative of the region `region_J` (in ascending order)."""

    region_J: Indices
    text_J: Indices


@dataclass(frozen=True, eq=False)
class LevelScores:
    """The protocol's figures at one level.

    Attributes:
        figures: "accuracy", the share where the own text is nearest; "mean_rank", of the own text, from 1 (the lower
            the better).
        negatives: mean number a region.
        chance: accuracy of a model that knows nothing.
        regions: numbers of the regions asked (below P); `credit` and `rank` are theirs.
    """

    figures: Mapping[str, Estimate]
    negatives: float
    chance: float
    regions: Indices
    credit: Floats
    rank: Floats


def collect(own_P: Sequence[int], negatives_P: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Negatives]:
    """Negatives by level, in the order in which levels first occur; repeated ones and the own text are dropped.

    Args:
        own_P: number of each region's own text.
        negatives_P: numbers of its negatives, by level.

    Raises:
        ValueError: the lengths differ.
    """
    found: dict[str, list[tuple[int, int]]] = {}
    for region, (own, levels) in enumerate(zip(own_P, negatives_P, strict=True)):
        for level, texts in levels.items():
            kept = [(region, text) for text in dict.fromkeys(texts) if text != own]
            found.setdefault(level, []).extend(kept)
    pairs = {level: np.array(rows, dtype=np.int64).reshape(-1, 2) for level, rows in found.items()}
    return {level: Negatives(rows[:, 0], rows[:, 1]) for level, rows in pairs.items()}


def score(
    regions_PE: Floats,
    texts_UE: Floats,
    own_P: Indices,
    images_P: Indices,
    negatives: Mapping[str, Negatives],
    *,
    draws_SN: Draws,
) -> dict[str, LevelScores]:
    """Scores every level.

    Args:
        regions_PE, texts_UE: embeddings of regions and of all texts, normalised to length 1.
        own_P: number of each region's own text.
        images_P: index of each region's image.
        negatives: by level (see `collect`).
        draws_SN: resamples of the images (`statistics.draws`).
    """
    own_P, images_P = np.asarray(own_P, dtype=np.int64), np.asarray(images_P, dtype=np.int64)
    own_score_P = _scores(regions_PE, texts_UE, np.arange(len(own_P)), own_P)
    return {
        level: _level(
            own_score_P,
            _scores(regions_PE, texts_UE, items.region_J, items.text_J),
            items.region_J,
            images_P,
            draws_SN,
        )
        for level, items in negatives.items()
    }


def _scores(regions_PE: Floats, texts_UE: Floats, region_J: Indices, text_J: Indices) -> Floats:
    """Cosine of each pair."""
    scores_J = np.empty(len(region_J))
    for rows in chunks(len(region_J), columns=texts_UE.shape[1]):
        a, b = regions_PE[region_J[rows]].astype(np.float64), texts_UE[text_J[rows]].astype(np.float64)
        scores_J[rows] = np.einsum("je,je->j", a, b)
    return scores_J


def _level(own_score_P: Floats, scores_J: Floats, region_J: Indices, images_P: Indices, draws_SN: Draws) -> LevelScores:
    regions = np.unique(region_J)
    size = len(own_score_P)
    count = np.bincount(region_J, minlength=size)[regions]
    above = np.bincount(region_J, weights=scores_J > own_score_P[region_J], minlength=size)[regions]
    tied = np.bincount(region_J, weights=scores_J == own_score_P[region_J], minlength=size)[regions]
    credit = np.where(above == 0, 1 / (1 + tied), 0.0)
    rank = 1 + above + tied / 2
    return LevelScores(
        figures={
            "accuracy": mean_estimate(credit, images_P[regions], draws_SN),
            "mean_rank": mean_estimate(rank, images_P[regions], draws_SN),
        },
        negatives=float(count.mean()) if len(count) else 0.0,
        chance=float((1 / (1 + count)).mean()) if len(count) else 0.0,
        regions=regions,
        credit=credit,
        rank=rank,
    )
