"""Recorded runs, to read: found by id, by the start of an id or by name."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloc.config.schema import TrackingConfig
from cloc.errors import ConfigError
from cloc.tracking.registered import download
from cloc.tracking.store import asked, connect, existing, tracking_uri

_PAGE, _ID = 1000, 32
_SHORTEST = 4  # characters of an id that may stand for it


@dataclass(frozen=True)
class Recorded:
    """A run.

    Attributes:
        run_id, name: of the run.
        stage: that it recorded; empty for a pipeline's run.
        parent: id of the pipeline's run; empty for none.
        started: milliseconds since 1970.
        params, tags, metrics: as logged; a curve's metric is its last point.
        data: digest and profile of the data sets that it read, by name.
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

    def __str__(self) -> str:
        moment = datetime.fromtimestamp(self.started / 1000, tz=UTC)
        return f"{self.run_id[:8]} ({self.name}, {moment:%Y-%m-%d %H:%M} UTC)"


class Reader:
    """Runs of the experiment `tracking.experiment` in a store.

    Raises:
        ConfigError: from every method: there is no such store, experiment or run.
    """

    def __init__(self, config: TrackingConfig) -> None:
        self.uri = existing(tracking_uri(config))
        self._client = connect(self.uri)
        with asked(self.uri, "cannot be read", hint="set tracking.uri or MLFLOW_TRACKING_URI"):
            found = self._client.get_experiment_by_name(config.experiment)
        if found is None:
            raise ConfigError(f"MLflow at {self.uri} has no experiment {config.experiment!r}; set tracking.experiment")
        self._experiment = found

    def find(self, reference: str) -> Recorded:
        """The run with this id, the start of an id, or name."""
        with asked(self.uri, "cannot be read"):
            runs = [_recorded(run) for run in self._all()]
        for test in (
            lambda run: run.run_id == reference,
            lambda run: run.name == reference,
            lambda run: len(reference) >= _SHORTEST and run.run_id.startswith(reference),
        ):
            found = [run for run in runs if test(run)]
            if len(found) > 1:
                listed = ", ".join(str(run) for run in found[:4]) + (", ..." if len(found) > len(found[:4]) else "")
                raise ConfigError(f"run {reference!r} is one of {len(found)}: {listed}; give the start of one's id")
            if found:
                return found[0]
        raise ConfigError(
            f"run {reference!r}: no such folder, and no run of that id or name in the experiment "
            f"{self._experiment.name!r} of MLflow at {self.uri}"
        )

    def children(self, run: Recorded) -> list[Recorded]:
        """The stages of a pipeline's run, in the order that they began."""
        with asked(self.uri, "cannot be read"):
            found = [_recorded(item) for item in self._all(f"tags.`mlflow.parentRunId` = '{run.run_id}'")]
        return sorted(found, key=lambda item: (item.started, item.run_id))

    def files(self, run: Recorded, names: Sequence[str]) -> dict[str, bytes]:
        """Artifacts of a run by name: those of `names` that there are."""
        with asked(self.uri, f"does not give the files of run {run}"):
            there = {item.path for item in self._client.list_artifacts(run.run_id)} & set(names)
            root = self._client.get_run(run.run_id).info.artifact_uri
            return {name: Path(download(f"{root}/{name}", uri=self.uri)).read_bytes() for name in sorted(there)}

    def _all(self, filter_string: str = "") -> Iterator[Any]:
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment.experiment_id], filter_string, max_results=_PAGE, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return


def _recorded(run: Any) -> Recorded:
    data: dict[str, str] = {}
    for item in run.inputs.dataset_inputs if run.inputs else ():
        profile = json.loads(item.dataset.profile or "{}")
        counts = ", ".join(f"{value} {name}" for name, value in profile.items() if value is not None)
        data[item.dataset.name] = f"{item.dataset.digest} ({counts})" if counts else item.dataset.digest
    return Recorded(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        stage=run.data.tags.get("cloc.stage", ""),
        parent=run.data.tags.get("mlflow.parentRunId", ""),
        started=run.info.start_time or 0,
        params=run.data.params,
        tags=run.data.tags,
        metrics=run.data.metrics,
        data=data,
    )
