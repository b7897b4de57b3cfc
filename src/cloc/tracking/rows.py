"""Rows of metrics, as points of MLflow's curves."""

import functools
import math
import time
from collections.abc import Iterator, Mapping, Sequence

NO_METRICS = frozenset({"step", "seconds", "timestamp"})
_BATCH = 900
_NAME_LIMIT = 250
BY_SAMPLES = "by_samples/"
"""How the second curve of a loss or an evaluation begins, whose steps are samples seen."""

Row = Mapping[str, float]
"""Metrics of a step: {"step": ..., "timestamp": milliseconds since 1970, NAME: value, ...}; "seconds" is not logged."""

Point = tuple[str, float, int, int]
"""Name, value, milliseconds since 1970, step."""


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def names_of(row: Row) -> list[str]:
    """The metrics of a row that MLflow takes: it has no place for what is not finite."""
    return [name for name in row if name not in NO_METRICS and math.isfinite(row[name])]


def first_metric(row: Row) -> str:
    """Rows are logged whole: this one's steps are those of the others."""
    return next(iter(names_of(row)), "")


def points_of(row: Row) -> list[Point]:
    """A row's metrics, against its step; losses and evaluations against its samples as well."""
    names, step, moment = names_of(row), int(row["step"]), int(row.get("timestamp") or now())
    found = [(metric_name(name), float(row[name]), moment, step) for name in names]
    if "samples" in row:
        found += [
            (metric_name(f"{BY_SAMPLES}{name}"), float(row[name]), moment, int(row["samples"]))
            for name in names
            if name.startswith(("loss/", "eval/"))
        ]
    return found


def left_out(rows: Sequence[Row]) -> dict[str, tuple[int, float, int]]:
    """The metrics with points that are not finite: step and value of the first of them, and how many there are."""
    found = dict[str, tuple[int, float, int]]()
    for row in rows:
        for name, value in row.items():
            if name not in NO_METRICS and not math.isfinite(value):
                step, first, count = found.get(name, (int(row["step"]), float(value), 0))
                found[name] = (step, first, count + 1)
    return found


def row_batches(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Whole rows, as many as MLflow takes at once."""
    batch, size = list[Row](), 0
    for row in rows:
        if batch and size + 2 * len(row) > _BATCH:
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += 2 * len(row)
    if batch:
        yield batch


@functools.lru_cache(maxsize=16_384)  # the same hundreds, step after step
def metric_name(name: str) -> str:
    """A name with the characters alone that MLflow takes, and as many of them."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)[:_NAME_LIMIT]
