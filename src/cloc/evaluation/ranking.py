"""What protocols share that rank candidates by cosine: chunks of bounded size, and what a tie is worth.

Candidates that tie stand in random order: the credit of a query at K is the probability that a right one is among the
first K. So a model that gives everything the same embedding gets chance, never all or nothing.
Shapes: Q queries, X candidates, E embedding width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import numpy.typing as npt

from cloc.evaluation.statistics import Floats, Indices

KS = (1, 5, 10)
_CELLS = 1 << 22  # scores held at a time: 16 MiB of float32, and a few masks of that shape


@dataclass(frozen=True, eq=False)
class Ranking:
    """What every query found.

    Attributes:
        credit: of each query, in [0, 1], by K.
        nearest: index of each query's nearest candidate (the first of those that tie).
    """

    credit: dict[int, Floats]
    nearest: Indices


def unit(x: Floats) -> Floats:
    """Rows of length 1; rows of zeros stay."""
    norms = np.linalg.norm(x, axis=-1, keepdims=True)
    rows: Floats = x / np.where(norms > 0, norms, 1)
    return rows


def chunks(rows: int, *, columns: int) -> Iterator[slice]:
    """Slices of rows, so that a chunk of a (rows, columns) array is of bounded size."""
    size = max(1, _CELLS // max(1, columns))
    for first in range(0, rows, size):
        yield slice(first, first + size)


def rank(
    queries_QE: Floats, candidates_XE: Floats, *, group_Q: Indices, group_X: Indices, ks: Sequence[int] = KS
) -> Ranking:
    """Ranks all candidates for each query; those of the query's own group are right, and there must be one.

    Args:
        queries_QE, candidates_XE: embeddings, normalised to length 1.
        group_Q, group_X: group of each query and of each candidate.
        ks: the ranks to look at.
    """
    credit = {k: np.zeros(len(queries_QE)) for k in ks}
    nearest = np.zeros(len(queries_QE), dtype=np.int64)
    for rows in chunks(len(queries_QE), columns=len(candidates_XE)):
        scores_QX = queries_QE[rows] @ candidates_XE.T
        nearest[rows] = scores_QX.argmax(axis=1)
        found = hits(scores_QX, group_Q[rows, None] == group_X[None, :], ks=ks)
        for k in ks:
            credit[k][rows] = found[k]
    return Ranking(dict(credit), nearest)


def hits(scores_QX: Floats, right_QX: npt.NDArray[np.bool_], *, ks: Sequence[int] = KS) -> dict[int, Floats]:
    """Credit of each query at each K: probability that a right candidate is among the K best.

    Each query needs at least one right candidate.
    """
    queries, candidates = np.nonzero(right_QX)  # few: in the order of queries
    right_scores = scores_QX[queries, candidates]
    starts_Q = np.searchsorted(queries, np.arange(len(scores_QX)))
    best_Q = np.maximum.reduceat(right_scores, starts_Q)
    right_Q = np.bincount(queries, weights=right_scores == best_Q[queries], minlength=len(scores_QX)).astype(np.int64)
    above_Q = (scores_QX > best_Q[:, None]).sum(axis=1)  # all of them wrong
    upto_Q = (scores_QX >= best_Q[:, None]).sum(axis=1)
    return credits(above_Q, right_Q, upto_Q - above_Q - right_Q, ks=ks)


def credits(above_Q: Indices, right_Q: Indices, wrong_Q: Indices, *, ks: Sequence[int] = KS) -> dict[int, Floats]:
    """Credit of each query at each K from how its candidates stand.

    Args:
        above_Q: wrong candidates above the best right one.
        right_Q, wrong_Q: right and wrong candidates that share the place of the best right one; right ones are >= 1.
        ks: the ranks to look at.
    """
    credit: dict[int, Floats] = {k: (above_Q < k).astype(np.float64) for k in ks}
    for query in np.flatnonzero(wrong_Q):
        right, wrong = int(right_Q[query]), int(wrong_Q[query])
        for k in ks:
            places = max(0, k - int(above_Q[query]))
            # None of the first `places` of the tied is right: all of them are drawn from the wrong ones.
            missed = comb(wrong, places) / comb(right + wrong, places) if places <= wrong else 0.0
            credit[k][query] = 1.0 - missed
    return credit


def own_place(scores_QX: Floats, own_Q: Indices) -> tuple[Indices, Indices]:
    """How many candidates stand above a query's own one, and how many others share its place: (Q,), (Q,)."""
    own_Q1 = scores_QX[np.arange(len(scores_QX)), own_Q][:, None]
    return (scores_QX > own_Q1).sum(axis=1), (scores_QX == own_Q1).sum(axis=1) - 1
