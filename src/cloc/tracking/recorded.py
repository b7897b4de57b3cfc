"""A run as it was recorded, and a pipeline's run with its stages."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

_LABELS = ("captions", "regions")  # data sets of a run that are tables


@dataclass(frozen=True)
class Recorded:
    """A run.

    Attributes:
        run_id, name: of the run.
        stage: that it recorded; empty for a pipeline's run.
        parent: id of the run that it belongs to; empty for none.
        started, ended: milliseconds since 1970; `ended` is 0 while it runs.
        status: RUNNING, FINISHED, FAILED or KILLED, as MLflow has it.
        experiment: its id.
        params, tags, metrics: as logged; a curve's metric is its last point.
        data: digest and profile of the data sets that it read, by name.
        digests: of them alone.
    """

    run_id: str
    name: str
    stage: str
    parent: str
    started: int
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    data: Mapping[str, str]
    ended: int = 0
    status: str = ""
    experiment: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        moment = datetime.fromtimestamp(self.started / 1000, tz=UTC)
        return f"{self.run_id[:8]} ({self.name}, {moment:%Y-%m-%d %H:%M} UTC)"

    @property
    def seconds(self) -> float:
        """How long it took, or has been running."""
        return max(0.0, (self.ended or time.time() * 1000) - self.started) / 1000

    @property
    def failure(self) -> str:
        """Why it failed, in a line; "" where nobody said."""
        return " ".join(self.tags.get("cloc.failure", "").split())

    @property
    def commit(self) -> str:
        """The git commit, whole; "" where none was recorded."""
        return self.tags.get("mlflow.source.git.commit", "")

    @property
    def dirty(self) -> bool:
        """Whether what ran differed from the commit."""
        return self.tags.get("git.dirty") == "true"

    @property
    def started_by(self) -> str:
        """ "cli", "dvc" or "kfp"; "" where it was not recorded."""
        return self.tags.get("cloc.started_by", "")


@dataclass(frozen=True)
class Family:
    """A run with the stages that belong to it, in the order that they began.

    Attributes:
        run: a pipeline's, or that of a stage that belongs to none.
        stages: of the pipeline.
    """

    run: Recorded
    stages: tuple[Recorded, ...] = ()

    @property
    def status(self) -> str:
        """The run's own; where nobody tells when it ends (`dvc repro`), that of its last stage."""
        last = self.stages[-1].status if self.stages else ""
        told = "cloc.outcome" in self.run.tags or self.run.started_by != "dvc" or self.run.stage
        return self.run.status if told or not last else last

    @property
    def ended(self) -> int:
        """Milliseconds since 1970; 0 while something runs."""
        ends = [item.ended for item in (self.run, *self.stages)]
        return 0 if self.status == "RUNNING" or not ends[0] else max(ends)

    @property
    def seconds(self) -> float:
        """How long all took, or has been running."""
        return max(0.0, (self.ended or time.time() * 1000) - self.run.started) / 1000

    @property
    def failure(self) -> str:
        """Why it failed; "" where it did not, or nobody said."""
        if self.status not in ("FAILED", "KILLED"):
            return ""
        told = [f"{item.name}: {item.failure}" for item in self.stages if item.status == "FAILED" and item.failure]
        return self.run.failure or (told[-1] if told else "")

    @property
    def data(self) -> str:
        """Digest of the images that were trained on, else of the first that were read; "" where none is recorded."""
        members = sorted((self.run, *self.stages), key=lambda item: item.stage != "pretraining")
        found = (digest for item in members for name, digest in item.digests.items() if name not in _LABELS)
        return next(found, "")

    @property
    def figures(self) -> dict[str, float]:
        """How good the model is: `eval/...` of the run itself, without that prefix."""
        return {
            name.removeprefix("eval/"): value
            for name, value in sorted(self.run.metrics.items())
            if name.startswith("eval/")
        }


def recorded(run: Any) -> Recorded:
    """From MLflow's run."""
    data: dict[str, str] = {}
    digests: dict[str, str] = {}
    for item in run.inputs.dataset_inputs if run.inputs else ():
        profile = json.loads(item.dataset.profile or "{}")
        counts = ", ".join(f"{value} {name}" for name, value in profile.items() if value is not None)
        data[item.dataset.name] = f"{item.dataset.digest} ({counts})" if counts else item.dataset.digest
        digests[item.dataset.name] = item.dataset.digest
    return Recorded(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        stage=run.data.tags.get("cloc.stage", ""),
        parent=run.data.tags.get("mlflow.parentRunId", ""),
        started=run.info.start_time or 0,
        ended=run.info.end_time or 0,
        status=run.info.status,
        experiment=str(run.info.experiment_id),
        params=run.data.params,
        tags=run.data.tags,
        metrics=run.data.metrics,
        data=data,
        digests=digests,
    )
