"""What the charts of a comparison show, as numbers: intervals, accuracy by class and by size, confusion. No torch.

The page draws them with CSS, `figures.py` with matplotlib. Lengths are in percent of a chart's axis.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cloc.evaluation.summary import best_row, reader_name
from cloc.evaluation.tables import SIZES

CLASSES = 120  # most classes that the chart by class shows
CONFUSED = 10  # classes of the confusion
_TAKEN = 14  # columns of the confusion before "other"


@dataclass(frozen=True)
class Point:
    """A row of an interval chart, in percent of the axis; `kind` is "own", "cloc" or "clip"."""

    label: str
    text: str
    left: float
    low: float
    span: float
    kind: str
    best: bool = False


@dataclass(frozen=True)
class Chart:
    """An interval chart: rows over an axis from 0 to its last tick (place in percent, label)."""

    title: str
    note: str
    ticks: tuple[tuple[float, str], ...]
    points: tuple[Point, ...]


@dataclass(frozen=True)
class ClassBar:
    """A class: accuracy of the candidate's row and of the other (None without), in percent, and its regions."""

    name: str
    own: float
    other: float | None
    regions: int

    @property
    def low(self) -> float:
        """Left end of the line between the two."""
        return min(self.own, self.own if self.other is None else self.other)

    @property
    def span(self) -> float:
        """Length of that line."""
        return 0.0 if self.other is None else abs(self.own - self.other)


@dataclass(frozen=True)
class Confused:
    """A class that is often wrong: regions, share that is right, and shares of what they are taken for, by column."""

    name: str
    regions: int
    right: float
    taken: tuple[float, ...]


@dataclass(frozen=True)
class Confusion:
    """The classes with most errors, and what they are taken for: `columns` are classes, and at last all others.

    Attributes:
        model, reader: whose errors.
    """

    model: str
    reader: str
    columns: tuple[str, ...]
    rows: tuple[Confused, ...]


def axis(highest: float) -> tuple[float, tuple[tuple[float, str], ...]]:
    """The end of an axis from 0 that holds `highest` (a share), and its ticks in percent."""
    step = next((step for step in (0.02, 0.05, 0.1, 0.2) if step * 5 >= highest), 0.25)
    top = min(1.0, max(step, math.ceil(highest / step - 1e-9) * step))
    ticks = [step * number for number in range(round(top / step) + 1)]
    return top, tuple((100 * tick / top, f"{100 * tick:.0f}") for tick in ticks)


def regions(metrics: Mapping[str, Any], split: str) -> Chart | None:
    """Region mAcc of every row of a split; None without rows."""
    scores = metrics["splits"][split]
    rows = [row for row in scores["rows"] if row.get("region", {}).get("n")]
    if not rows:
        return None
    best = {model: best_row(metrics, split=split, model=model) for model in metrics["models"]}
    top, ticks = axis(max(row["region"]["interval"]["mAcc"][1] for row in rows))
    points = [
        _point(metrics, row, row["region"], top=top, label=_label(row), best=row is best[row["model"]]) for row in rows
    ]
    note = f"{scores['images']:,} images, {scores['regions']:,} regions of {scores['classes_occurring']} classes; "
    return Chart(split.replace("_", " "), f"{note}chance {100 / scores['classes']:.1f}", ticks, tuple(points))


def sizes(metrics: Mapping[str, Any]) -> list[Chart]:
    """Region mAcc of each model's best row on the headline split by size of the box, on one axis."""
    split = metrics["headline"]["split"]
    rows = [best_row(metrics, split=split, model=model) for model in metrics["models"]]
    found = [(row, row["region"].get("by_size", {})) for row in rows if row]
    blocks = {size: [(row, by[size]) for row, by in found if by.get(size, {}).get("n")] for size in SIZES}
    highest = [block["interval"]["mAcc"][1] for pairs in blocks.values() for _, block in pairs]
    if not highest:
        return []
    top, ticks = axis(max(highest))
    return [
        Chart(
            size,
            f"{pairs[0][1]['n']:,} boxes",
            ticks,
            tuple(_point(metrics, row, block, top=top, label=row["model"]) for row, block in pairs),
        )
        for size, pairs in blocks.items()
        if pairs
    ]


def _label(row: Mapping[str, Any]) -> str:
    return f"{row['model']} · {reader_name(row['reader'])}"


def _point(
    metrics: Mapping[str, Any],
    row: Mapping[str, Any],
    block: Mapping[str, Any],
    *,
    top: float,
    label: str,
    best: bool = False,
) -> Point:
    found, (low, high) = block["mAcc"], block["interval"]["mAcc"]
    own = row["model"] == metrics["headline"]["candidate"]
    return Point(
        label=label,
        text=f"{100 * found:.1f}",
        left=100 * found / top,
        low=100 * low / top,
        span=100 * (high - low) / top,
        kind="own" if own else metrics["models"][row["model"]]["objective"],
        best=best,
    )


def classes(own: Mapping[str, Any], other: Mapping[str, Any] | None) -> list[ClassBar]:
    """Accuracy by class of a row and of another, the `CLASSES` most frequent, best first."""
    rows = own["region"].get("per_class", {})
    others = other["region"].get("per_class", {}) if other else {}
    frequent = sorted(rows, key=lambda name: (-rows[name]["n"], name))[:CLASSES]
    found = [
        ClassBar(
            name,
            100 * rows[name]["accuracy"],
            100 * others[name]["accuracy"] if name in others else None,
            int(rows[name]["n"]),
        )
        for name in frequent
    ]
    return sorted(found, key=lambda bar: (-bar.own, -(bar.other or 0.0), bar.name))


def confusion(counts_CC: npt.NDArray[np.int64], names: Sequence[str], *, model: str, reader: str) -> Confusion | None:
    """The classes with most errors of a reader, and what their regions are taken for; None where all is right.

    Args:
        counts_CC: regions by the right class (row) and the predicted one (column).
        names: of the classes.
    """
    wrong_C = counts_CC.sum(axis=1) - counts_CC.diagonal()
    worst = [int(c) for c in np.argsort(-wrong_C, kind="stable")[:CONFUSED] if wrong_C[c]]
    if not worst:
        return None
    taken_C = counts_CC[worst].sum(axis=0)
    taken_C[worst] = 0
    more = [int(c) for c in np.argsort(-taken_C, kind="stable")[: max(0, _TAKEN - len(worst))] if taken_C[c]]
    columns = [*worst, *more]
    rows = []
    for c in worst:
        total = int(counts_CC[c].sum())
        shares = [float(counts_CC[c, other]) / total for other in columns]
        right = float(counts_CC[c, c]) / total
        rows.append(Confused(names[c], total, right, (*shares, max(0.0, 1 - sum(shares)))))
    return Confusion(model, reader, (*(names[c] for c in columns), "all others"), tuple(rows))
