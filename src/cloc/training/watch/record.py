"""Metrics of a run: JSON lines, MLflow, and a line (or a bar) for a person. The first rank's."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol

from cloc.training.watch.live import live_run
from cloc.training.watch.progress import Reporter
from cloc.training.watch.rows import open_rows

# How long the end of a run waits for MLflow: what is missing then is logged at the end of the stage.
_PATIENCE_SECONDS, _PATIENCE_AFTER_FAILURE = 30.0, 5.0


class Recorded(Protocol):
    """A job whose metrics are written."""

    @property
    def output(self) -> str:
        """Folder or s3:// prefix."""
        ...

    @property
    def objective(self) -> str:
        """What lines of progress begin with."""
        ...

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        ...

    def constants(self, *, batch_size: int) -> Mapping[str, float]:
        """Figures that stand in every row."""
        ...


class Recorder:
    """Writes what is measured. Use it as a context: leaving it writes what is left.

    Rows go to MLflow while training goes on where the environment names a run (`live_run`).

    Args:
        job: of the run.
        start: step that the run goes on from; records after it are forgotten.
        batch_size: images a step.
        live: whether rows go to MLflow while training goes on.
    """

    def __init__(self, job: Recorded, *, start: int, batch_size: int, live: bool = True) -> None:
        self._rows, self._live = open_rows(job.output, start=start), live_run() if live else None
        self._reporter = Reporter(job.objective, start=start, steps=job.steps, batch_size=batch_size)
        self._constant = job.constants(batch_size=batch_size)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._rows.close()
        finally:
            if self._live:
                self._live.close(patience=_PATIENCE_SECONDS if kind is None else _PATIENCE_AFTER_FAILURE)

    def background_seconds(self) -> float:
        """Processor seconds that telling MLflow took in this process."""
        return self._live.cpu_seconds if self._live else 0.0

    def step(self, step: int) -> None:
        """Tells that a step is done."""
        self._reporter.step(step)

    def write(self, step: int, *, seconds: float, values: Mapping[str, float]) -> None:
        """Numbers of a step, all at once: a step has one row."""
        values = {**values, **self._constant}
        # MLflow's point of this row is the same, whenever it is sent.
        row = {"step": step, "seconds": round(seconds, 3), "timestamp": time.time_ns() // 1_000_000, **values}
        self._rows.add(row)
        if self._live:
            self._live.log(row)
        self._reporter.record(step, values)
