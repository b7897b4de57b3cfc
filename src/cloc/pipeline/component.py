"""The one call in a component's body: a stage between a pipeline's artifacts.

Paths, metadata, metrics, the page for the pipeline's user interface, and failures as one line are handled here, the
same for all components. Artifacts come in as the pipeline made them; all that is used of them is in `Artifact`.
"""

import html
import json
import math
import os
import shutil
import sys
from collections import namedtuple
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from cloc.config import parse
from cloc.data.dataset import Dataset, resolve_split
from cloc.errors import ClocError, ConfigError, GateFailed
from cloc.pipeline.parameters import AT, BASE_PRESET, PART, PARTS, SKIP, resolve, stage_parameters
from cloc.stage import StageResult
from cloc.stages import run_stage
from cloc.tracking import begin_pipeline

LOCATION_FILE, SKIPPED_FILE = "location.json", "skipped.json"
PAGE_FILE = "index.html"
CONFUSION_FILE = "confusion.json"
# Where a runner wants the reason of a failure: a JSON file.
FAILURE_VARIABLE = "CLOC_FAILURE_FILE"


class Artifact(Protocol):
    """What is used of a pipeline's artifact: where it lies on this machine, and what the user interface shows."""

    path: str
    metadata: dict[str, Any]


class ConfusionArtifact(Artifact, Protocol):
    """An artifact that the user interface shows a matrix of."""

    def log_confusion_matrix(self, categories: list[str], matrix: list[list[int]]) -> None:
        """Rows are the right categories."""


def run_component(
    stage: str,
    parameters: str,
    *,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Artifact],
    metrics: Artifact,
    page: Artifact | None = None,
    more_pages: Mapping[str, Artifact] | None = None,
    confusion: ConfusionArtifact | None = None,
    tables: str = "",
) -> None:
    """Runs a stage as a task of a pipeline.

    A task that shall do nothing, or that reads what another one did not make for that reason, leaves artifacts that say
    why.

    Args:
        stage: its name in the registry.
        parameters: its entry of `stage_parameters`, JSON.
        inputs: fields of the stage's `Inputs`: artifacts, plain values, or dicts of these; None is left out.
        outputs: artifact of each field of the stage's `Outputs`.
        metrics: artifact that the stage's numbers are shown by.
        page: artifact that gets a copy of the HTML page in the stage's output `report`.
        more_pages: the same of other files there, by their names.
        confusion: artifact that gets the matrix of `confusion.json` there; empty where the stage found none.
        tables: output that lies elsewhere where the task names a place for it; the artifact then points there.

    Raises:
        SystemExit: the stage failed with a reason, which is the last line that was printed; its code is the error's.
    """
    with one_line_failure(stage):
        task = _task(parameters, stage=stage)
        pages = {**({} if page is None else {PAGE_FILE: page}), **(more_pages or {})}
        if reason := task.get(SKIP) or _missing(inputs):
            _skip(reason, outputs=outputs, metrics=metrics, pages=pages, confusion=confusion)
            return
        given = {name: _value(value) for name, value in inputs.items() if value is not None}
        if part := task.get(PART):
            given["worker"] = part
        folders = {name: artifact.path for name, artifact in outputs.items()}
        place = task.get(AT) if tables else None
        if place:
            folders[tables] = place
        settings = parse(task["settings"], source=f"settings of {stage}")
        try:
            result = run_stage(stage, settings, inputs=given, outputs=folders)
        except GateFailed:
            # The report says why, and stands already.
            _copy_pages(folders, pages)
            raise
        for artifact in outputs.values():
            _describe(artifact, result, code=task["code"])
        if place:
            _point(outputs[tables], {"location": place, "part": part or "", **result.counts})
        models = {f"{row}: {key}": value for row, own in result.models.items() for key, value in own.metrics.items()}
        write_metrics(metrics, {**result.metrics, **result.counts, **models})
        _copy_pages(folders, pages)
        if confusion is not None:
            _show_confusion(Path(folders["report"]) / CONFUSION_FILE, confusion)


def resolve_parameters(values: Mapping[str, Any], others: list[str], *, data: str, run_name: str = "") -> Any:
    """The pipeline's first task: validates all settings, and gives every stage its own (see `stage_parameters`).

    The run in MLflow begins here where the tasks know it by a key; it gets the name of the pipeline's run.

    Returns:
        A named tuple with a field a task, as KFP wants several outputs.

    Raises:
        SystemExit: a setting is wrong, or the data are not there; the reason is the last line.
    """
    with one_line_failure("settings"):
        config = resolve(values, others)
        tasks = stage_parameters(config, data=data)
        begin_pipeline(config.tracking, settings=config.model_dump(mode="json"), name=run_name)
        print(f"settings of {len(tasks)} tasks are valid; base: preset {BASE_PRESET}", flush=True)
        return namedtuple("Stages", tasks)(**tasks)


def bring_data(parameters: str, *, data: Artifact, metrics: Artifact) -> None:
    """The task that data come from: points at the collection given, or renders the demo's.

    Data given from outside are not copied: the artifact holds `location.json`, which `run_component` follows.

    Raises:
        SystemExit: as `run_component`.
    """
    with one_line_failure("ingest"):
        task = _task(parameters, stage="ingest")
        if "data" not in task:
            run_component("scenes", parameters, inputs={}, outputs={"data": data}, metrics=metrics)
            return
        given = task["data"]
        _point(data, given)
        data.metadata.update({"message": f"data at {given['location']}", **given})
        write_metrics(metrics, {})
        print(f"data: {given['location']} (hash {given['digest']})", flush=True)


def plan_parts(parameters: str, *, data: Artifact) -> list[str]:
    """What each task is given that labels a share of the shards: no more of them than there are shards, none where one
    task does it all.

    Args:
        parameters: of the task that would label everything.
        data: collection or data set.

    Raises:
        SystemExit: as `run_component`.
    """
    with one_line_failure("label_parts"):
        task = _task(parameters, stage="label_parts")
        if not task.get(PARTS):
            return []
        split = parse(task["settings"], source="settings of label_parts").data.train_split
        shards = len(Dataset.open(resolve_split(location(data), split)).manifest.shards)
        count = min(task[PARTS], shards)
        print(f"{shards} shards in {count} parts", flush=True)
        return [json.dumps(task | {PART: f"{number}/{count}"}, sort_keys=True) for number in range(count)]


@contextmanager
def one_line_failure(task: str) -> Iterator[None]:
    """Turns a ClocError into one last line, a record of it, and an exit code; other exceptions keep their traceback."""
    try:
        yield
    except ClocError as error:
        sys.stdout.flush()
        where = os.environ.get(FAILURE_VARIABLE)
        if where:
            record = {"task": task, "message": str(error), "exit_code": error.exit_code}
            Path(where).write_text(json.dumps(record) + "\n")
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None


def write_metrics(metrics: Artifact, values: Mapping[str, float]) -> None:
    """Fills a metrics artifact; the file makes KFP's caches take the task. What is no number cannot be shown."""
    shown = {name: float(value) for name, value in values.items() if math.isfinite(value)}
    left_out = sorted(values.keys() - shown.keys())
    if left_out:
        print(f"not among the task's metrics, being no finite number: {', '.join(left_out)}", flush=True)
    metrics.metadata.update(shown)
    path = Path(metrics.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(shown, indent=1, sort_keys=True) + "\n")


def _show_confusion(file: Path, confusion: ConfusionArtifact) -> None:
    found = json.loads(file.read_text()) if file.is_file() else {}
    if found:
        confusion.log_confusion_matrix(found["categories"], found["matrix"])
    path = Path(confusion.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found) + "\n")


def skipped(artifact: Artifact) -> str:
    """Why an artifact was not made; "" where it was."""
    told = Path(artifact.path) / SKIPPED_FILE
    return str(json.loads(told.read_text())["reason"]) if told.is_file() else ""


def location(artifact: Artifact) -> str:
    """Where an artifact's content lies: in it, or where its `location.json` points."""
    pointer = Path(artifact.path) / LOCATION_FILE
    return str(json.loads(pointer.read_text())["location"]) if pointer.is_file() else artifact.path


def _task(parameters: str, *, stage: str) -> dict[str, Any]:
    try:
        task: dict[str, Any] = json.loads(parameters)
        task["settings"], task["code"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"task {stage}: its parameters must be JSON with `settings` and `code`, got {parameters[:200]!r}"
        ) from None
    return task


def _value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _value(item) for name, item in value.items() if not (hasattr(item, "path") and skipped(item))}
    return location(value) if hasattr(value, "path") else value


def _missing(inputs: Mapping[str, Any]) -> str:
    """Why an input that a task cannot do without was not made."""
    return next((reason for item in inputs.values() if hasattr(item, "path") and (reason := skipped(item))), "")


def _skip(
    reason: str,
    *,
    outputs: Mapping[str, Artifact],
    metrics: Artifact,
    pages: Mapping[str, Artifact],
    confusion: Artifact | None,
) -> None:
    for artifact in outputs.values():
        Path(artifact.path).mkdir(parents=True, exist_ok=True)
        (Path(artifact.path) / SKIPPED_FILE).write_text(json.dumps({"reason": reason}) + "\n")
        artifact.metadata["skipped"] = reason
    text = f"<!doctype html><title>Skipped</title><p>Skipped: {html.escape(reason)}.</p>\n"
    for artifact, body in [*((page, text) for page in pages.values()), *([(confusion, "{}\n")] if confusion else [])]:
        Path(artifact.path).parent.mkdir(parents=True, exist_ok=True)
        Path(artifact.path).write_text(body)
    write_metrics(metrics, {})
    print(f"skipped: {reason}", flush=True)


def _point(artifact: Artifact, place: Mapping[str, Any]) -> None:
    """Has an artifact point at what lies elsewhere."""
    folder = Path(artifact.path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOCATION_FILE).write_text(json.dumps(dict(place)) + "\n")


def _describe(artifact: Artifact, result: StageResult, *, code: str) -> None:
    artifact.metadata.update({name: int(value) for name, value in result.counts.items()})
    artifact.metadata.update({"message": result.message, "stage": result.stage, "code": code})
    if result.mlflow_run:
        artifact.metadata["mlflow_run"] = result.mlflow_run


def _copy_pages(folders: Mapping[str, str], pages: Mapping[str, Artifact]) -> None:
    for name, page in pages.items():
        source = Path(folders["report"]) / name
        if not source.is_file():
            raise ClocError(f"there is no {source} to show")
        Path(page.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, page.path)
