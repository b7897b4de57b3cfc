"""What a reader's regions are taken for, as a small square matrix for user interfaces that show one."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cloc.evaluation.statistics import Indices

CONFUSION_FILE = "confusion.json"
CLASSES = 10
OTHERS = "all others"


def square(counts_CC: Indices, names: Sequence[str], *, limit: int = CLASSES) -> dict[str, Any]:
    """The confusion of the classes with most errors, then of the most frequent ones; all other classes are one.

    Args:
        counts_CC: regions by the right class (row) and the predicted one (column).
        names: of the classes.
        limit: classes at most.

    Returns:
        `categories`, the last of them `OTHERS` where there are more, and `matrix`, whose rows are the right classes.
    """
    total_C = counts_CC.sum(axis=1)
    wrong_C = total_C - counts_CC.diagonal()
    order = np.lexsort((np.arange(len(names)), -total_C, -wrong_C))
    shown = [int(number) for number in order[:limit] if total_C[number]]
    group_C = np.full(len(names), len(shown))
    group_C[shown] = np.arange(len(shown))
    matrix = np.zeros((len(shown) + 1, len(shown) + 1), dtype=np.int64)
    np.add.at(matrix, (group_C[:, None], group_C[None, :]), counts_CC)
    categories = [*(names[number] for number in shown), OTHERS]
    if len(shown) == len(names):
        categories, matrix = categories[:-1], matrix[:-1, :-1]
    return {"categories": categories, "matrix": matrix.tolist()}
