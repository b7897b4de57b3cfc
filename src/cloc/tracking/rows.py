"""Rows of metrics, as points of MLflow's curves."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NO_METRICS = frozenset({"step", "seconds"})
_BATCH = 900
BY_SAMPLES = "by_samples/"
"""How the second curve of a loss or an evaluation begins, whose steps are samples seen."""

Row = Mapping[str, float]
"""Metrics of a step: {"step": ..., NAME: value, ...}; "seconds" is not logged."""


def first_metric(row: Row) -> str:
    """Rows are logged whole: this one's steps are those of the others."""
    return next((name for name in row if name not in NO_METRICS), "")


def metrics_of(row: Row) -> Any:
    """A row's metrics, against its step; losses and evaluations against its samples as well."""
    from mlflow.entities import Metric
    from mlflow.utils.time import get_current_time_millis

    now, step = get_current_time_millis(), int(row["step"])
    found = [Metric(metric_name(name), float(row[name]), now, step) for name in row if name not in NO_METRICS]
    if "samples" in row:
        found += [
            Metric(metric_name(f"{BY_SAMPLES}{name}"), float(row[name]), now, int(row["samples"]))
            for name in row
            if name.startswith(("loss/", "eval/"))
        ]
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


def metric_name(name: str) -> str:
    """A name with the characters alone that MLflow takes."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)
