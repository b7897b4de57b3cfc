"""Metrics of a run: JSON lines, MLflow, and a line (or a bar) for a person. The first rank's."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from cloc.training.job import METRICS_FILE, TrainingJob


class Recorder:
    """Writes what is measured. Use it as a context: leaving it writes what is left.

    Args:
        job: of the run.
        start: step that the run goes on from; records after it are forgotten.
        batch_size: images a step.
    """

    def __init__(self, job: TrainingJob, *, start: int, batch_size: int) -> None:
        path = Path(job.output) / METRICS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= start] if start else []
        self._file = path.open("w", buffering=1)
        for line in kept:
            self._file.write(line + "\n")
        self._job, self._start, self._batch_size, self._began = job, start, batch_size, time.monotonic()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def step(self, step: int) -> None:
        """Tells that a step is done."""

    def write(self, step: int, *, seconds: float, values: Mapping[str, float]) -> None:
        """Numbers of a step."""
        self._file.write(json.dumps({"step": step, "seconds": round(seconds, 3), **values}) + "\n")
        spent = time.monotonic() - self._began
        left = spent / max(1, step - self._start) * (self._job.steps - step)
        parts = f"image {values['loss/image']:.3f}"
        if self._job.objective == "cloc":
            parts += f" region {values['loss/region']:.3f} grounding {values['loss/grounding']:.4f}"
        speed = (step - self._start) * self._batch_size / max(spent, 1e-9)
        print(
            f"{self._job.objective} step {step}/{self._job.steps} {parts} lr {values['learning_rate']:.1e} "
            f"{speed:.0f} images/s, {left:.0f} s left",
            flush=True,
        )
