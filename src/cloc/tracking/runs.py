"""Runs: a stage's, a pipeline's, and one that another process began."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cloc.config.load import flatten
from cloc.config.schema import TrackingConfig
from cloc.stage import StageResult
from cloc.tracking.provenance import KEY, common_tags, parent_run
from cloc.tracking.rows import NO_METRICS, Row, first_metric, metric_name, metrics_of, row_batches
from cloc.tracking.store import STORE_VARIABLE, connect, exported, open_store

_PARAM_LIMIT = 500
_ARTIFACT_LIMIT = 64 * 2**20
_STATUS = {"SUCCEEDED": "FINISHED", "SKIPPED": "FINISHED", "CANCELED": "KILLED"}
_FIGURE_SUFFIXES = frozenset({".png", ".csv", ".json"})
STAGE_RUN, STAGE_URI = "CLOC_MLFLOW_RUN_ID", STORE_VARIABLE
"""Variables that name a stage's run and its store to the processes that the stage starts."""


class Run:
    """A run that is being recorded: a stage's, or a pipeline's."""

    def __init__(self, client: Any, run_id: str, *, uri: str) -> None:
        self._client, self.run_id, self.uri = client, run_id, uri

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        """Nested settings, flattened to parameters; long values are cut and stand whole in settings.json."""
        from mlflow.entities import Param

        values = [Param(name, str(value)[:_PARAM_LIMIT]) for name, value in flatten(settings).items()]
        for start in range(0, len(values), 100):
            self._client.log_batch(self.run_id, params=values[start : start + 100])
        self._client.log_dict(self.run_id, dict(settings), "settings.json")

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Numbers at a step."""
        self.log_rows([{"step": step, **metrics}])

    def log_rows(self, rows: Sequence[Row]) -> None:
        """Points of curves: losses and evaluations against their samples, too."""
        for batch in row_batches(rows):
            self._client.log_batch(self.run_id, metrics=[metric for row in batch for metric in metrics_of(row)])

    def log_inputs(self, inputs: Mapping[str, Any]) -> None:
        """Where the stage read from, and the hashes of the data sets among it."""
        for name, value in inputs.items():
            self.set_tag(f"input.{name}", json.dumps(value) if isinstance(value, Mapping) else str(value))
            manifest = Path(str(value)) / "manifest.json"
            if manifest.is_file():
                self._log_dataset(name, manifest)

    def _log_dataset(self, name: str, manifest: Path) -> None:
        import hashlib

        from mlflow.entities import Dataset, DatasetInput

        text = manifest.read_text()
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        body = json.loads(text)
        profile = json.dumps({"images": body.get("images"), "shards": len(body.get("shards", ()))})
        source = json.dumps({"uri": str(manifest.parent)})
        dataset = Dataset(name=name, digest=digest, source_type="local", source=source, profile=profile)
        self._client.log_inputs(self.run_id, datasets=[DatasetInput(dataset)])

    def log_result(self, result: StageResult) -> None:
        """A stage's metrics, counts, message and artifacts; a metrics.jsonl among them becomes curves (but for what was
        logged live), and the run's description links its pages. Folders are kept that hold figures and tables alone."""
        pages, curves = list[str](), set[str]()
        for name, location in result.artifacts.items():
            path = Path(location)
            if path.name == "metrics.jsonl":
                curves |= self._log_curves(path)
            elif path.is_file() and path.stat().st_size <= _ARTIFACT_LIMIT:
                self._client.log_artifact(self.run_id, str(path))
                pages += [f"[{name}]({self._artifact_link(path.name)})"] if path.suffix == ".html" else []
            elif _holds_figures(path):
                self._log_figures(path)
            self.set_tag(f"artifact.{name}", location)
        metrics = {**result.metrics, **{f"count/{name}": value for name, value in result.counts.items()}}
        # A curve ends with its metric already; another point at step 0 would be none of the curve's.
        self.log_metrics({name: value for name, value in metrics.items() if name not in curves})
        self.set_tag("mlflow.note.content", "\n\n".join([result.message, *pages]))

    def _log_figures(self, folder: Path) -> None:
        """Logs a folder of figures and tables whole; MLflow's pages show those tables that are JSON."""
        self._client.log_artifacts(self.run_id, str(folder), folder.name)
        tables = [{"path": f"{folder.name}/{path.name}", "type": "table"} for path in sorted(folder.glob("*.json"))]
        if tables:
            self.set_tag("mlflow.loggedArtifacts", json.dumps(tables))

    def _log_curves(self, path: Path) -> set[str]:
        """Logs the rows of a file of JSON lines that the run does not have; returns the names of the curves."""
        rows: list[Row] = [json.loads(line) for line in path.read_text().splitlines()]
        names = {name for row in rows for name in row} - NO_METRICS
        present = names & self._client.get_run(self.run_id).data.metrics.keys()
        steps = {
            name: {item.step for item in self._client.get_metric_history(self.run_id, name)}
            for name in {first_metric(row) for row in rows} & present
        }
        self.log_rows([row for row in rows if row["step"] not in steps.get(first_metric(row), ())])
        return names

    def _artifact_link(self, name: str) -> str:
        """Where MLflow's pages show an artifact of this run, from any of them."""
        experiment = self._client.get_run(self.run_id).info.experiment_id
        return f"#/experiments/{experiment}/runs/{self.run_id}/artifacts/{name}"

    def set_tag(self, name: str, value: str) -> None:
        """A tag; names are reduced to the characters that MLflow takes."""
        self._client.set_tag(self.run_id, metric_name(name), value[:5000])

    def fail(self, reason: str) -> None:
        """Records why the stage failed."""
        self.set_tag("cloc.failure", reason)


def attach(run_id: str, uri: str) -> Run:
    """A run that exists, by its id and its store: to log to it from another process. Imports mlflow, and asks nothing
    of the store yet."""
    return Run(connect(uri), run_id, uri=uri)


def _holds_figures(folder: Path) -> bool:
    """Whether a folder holds small PNG, CSV and JSON files and nothing else: models and data are not copied."""
    files = list(folder.iterdir()) if folder.is_dir() else []
    known = all(path.is_file() and path.suffix in _FIGURE_SUFFIXES for path in files)
    return bool(files) and known and sum(path.stat().st_size for path in files) <= _ARTIFACT_LIMIT


@contextmanager
def pipeline_run(config: TrackingConfig, *, name: str, settings: Mapping[str, Any]) -> Iterator[Run]:
    """The parent run of a pipeline; stages started inside (in subprocesses, too) become its children."""
    client, uri, experiment = open_store(config)
    created = client.create_run(experiment, run_name=name, tags={**common_tags(), "cloc.kind": "pipeline"})
    run = Run(client, created.info.run_id, uri=uri)
    run.log_settings(settings)
    try:
        with exported({"MLFLOW_RUN_ID": run.run_id, STAGE_URI: uri}):
            yield run
    except BaseException as error:
        run.fail(str(error))
        client.set_terminated(run.run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    client.set_terminated(run.run_id, "FINISHED")


def begin_pipeline(config: TrackingConfig, *, settings: Mapping[str, Any]) -> None:
    """The run of a pipeline whose tasks know each other by `CLOC_RUN_KEY` is made where it is missing, with all
    settings."""
    if not os.environ.get(KEY):
        return
    client, uri, experiment = open_store(config)
    run_id = parent_run(client, experiment)
    assert run_id is not None
    Run(client, run_id, uri=uri).log_settings(settings)


def end_pipeline(config: TrackingConfig, *, state: str, reason: str) -> str:
    """Records how a pipeline ended, in its run.

    Args:
        config: section `tracking`.
        state: SUCCEEDED, FAILED, CANCELED or SKIPPED, as Kubeflow says.
        reason: why it failed; "" where it did not.

    Returns:
        The run's id; "" where it has none.
    """
    client, uri, experiment = open_store(config)
    run_id = parent_run(client, experiment)
    if run_id is None:
        return ""
    run = Run(client, run_id, uri=uri)
    run.set_tag("cloc.outcome", state)
    if reason:
        run.fail(reason)
    client.set_terminated(run_id, _STATUS.get(state, "FAILED"))
    return run_id


@contextmanager
def stage_run(config: TrackingConfig, *, stage: str, settings: Mapping[str, Any]) -> Iterator[Run]:
    """The run of one stage, under the pipeline's run where there is one. Processes that the stage starts know it by the
    variables `STAGE_RUN` and `STAGE_URI`."""
    client, uri, experiment = open_store(config)
    parent = parent_run(client, experiment)
    tags = {**common_tags(), "cloc.kind": "stage", "cloc.stage": stage}
    if parent:
        tags["mlflow.parentRunId"] = parent
        experiment = client.get_run(parent).info.experiment_id
    created = client.create_run(experiment, run_name=stage, tags=tags)
    run = Run(client, created.info.run_id, uri=uri)
    run.log_settings(settings)
    try:
        with exported({STAGE_RUN: run.run_id, STAGE_URI: uri}):
            yield run
    except BaseException as error:
        client.set_terminated(run.run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    client.set_terminated(run.run_id, "FINISHED")
