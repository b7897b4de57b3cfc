"""Runs: what is said to one; a stage's, and one that another process began. For pipelines see `pipelines`.

What is said to a run goes through its outbox: at once where MLflow answers, later where it does not (`outbox`).
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cloc.config.load import flatten
from cloc.config.schema import TrackingConfig
from cloc.stage import StageResult
from cloc.tracking.datasets import DataSet
from cloc.tracking.delivery import deliver_older, take_over
from cloc.tracking.identity import Identity, Parent
from cloc.tracking.journal import VARIABLE as OUTBOX_VARIABLE
from cloc.tracking.journal import outbox as outbox_folder
from cloc.tracking.machine import sampled
from cloc.tracking.outbox import Outbox
from cloc.tracking.parents import parent_of_here
from cloc.tracking.provenance import common_tags
from cloc.tracking.records import OWN_ARTIFACTS, OWN_EXPERIMENT, Record
from cloc.tracking.rows import NO_METRICS, Row, left_out, metric_name, names_of, now, row_batches
from cloc.tracking.store import STORE_VARIABLE, experiment_name, exported, tracking_uri
from cloc.tracking.titles import NAME_VARIABLE
from cloc.tracking.troubles import is_away, shown, unusable

_PARAM_LIMIT, _TAG_LIMIT = 500, 5000
_ARTIFACT_LIMIT = 64 * 2**20
_CURVES = "metrics.jsonl"
_FIGURE_SUFFIXES = frozenset({".png", ".jpg", ".csv", ".json"})
_BY_KEY = "key:"
STAGE_RUN, STAGE_URI = "CLOC_MLFLOW_RUN_ID", STORE_VARIABLE
"""Variables that name a stage's run and its store to the processes that the stage starts."""


class Run:
    """A run that is being recorded: a stage's, or a pipeline's.

    Attributes:
        data_sets: that were logged.
        pages: of its result, as links that hold anywhere in MLflow's pages; none while the store is away.
    """

    def __init__(self, outbox: Outbox, identity: Identity) -> None:
        self._outbox, self._identity = outbox, identity
        self._told_of = set[str]()
        self.data_sets, self.pages = list[DataSet](), list[str]()
        self._left_live: int | None = None

    @property
    def run_id(self) -> str:
        """MLflow's id; "" as long as the store was not reached."""
        return self._outbox.run_id

    @property
    def uri(self) -> str:
        """Address of the store."""
        return self._outbox.uri

    @property
    def reference(self) -> str:
        """For `attach`: the id, or what the run is found by."""
        return self.run_id or f"{_BY_KEY}{self._identity.key}"

    @property
    def pipeline(self) -> str:
        """What the run above is called; "" where there is none, or nobody has told."""
        return self._identity.parent.name if self._identity.parent else ""

    def as_parent(self) -> Parent:
        """For runs below it, wherever they are made."""
        return Parent(run_id=self.run_id) if self.run_id else Parent(key=self._identity.key, awaited=True)

    def put(self, record: Record) -> None:
        """Takes a record (see `records`): told at once where the store answers, later where it does not."""
        self._outbox.put(record)

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        """Nested settings, flattened to parameters; long values are cut and stand whole in settings.json."""
        self.log_parameters({name: str(value) for name, value in flatten(settings).items()})
        self.put({"op": "text", "path": "settings.json", "text": json.dumps(settings, indent=2)})

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Numbers at a step."""
        row, moment = {"step": step, **metrics}, now()
        self._tell_left_out([row])
        points = [[metric_name(name), float(row[name]), moment, step] for name in names_of(row)]
        if points:
            self.put({"op": "points", "values": points})

    def log_rows(self, rows: Sequence[Row]) -> None:
        """Points of curves, each step once: losses and evaluations against their samples, too."""
        moment = now()
        self._tell_left_out(rows)
        for batch in row_batches(rows):
            self.put({"op": "rows", "rows": [{"timestamp": moment, **row} for row in batch]})

    def _tell_left_out(self, rows: Sequence[Row]) -> None:
        for name, (step, value, count) in left_out(rows).items():
            if name not in self._told_of:
                more = f", and {count - 1} more of its points" if count > 1 else ""
                print(
                    f"metric {name} is {value} at step {step}{more}: MLflow holds finite numbers alone, these are left "
                    "out there",
                    file=sys.stderr,
                    flush=True,
                )
            self._told_of.add(name)

    def log_parameters(self, values: Mapping[str, str]) -> None:
        """Parameters; long values are cut."""
        self.put({"op": "params", "values": {name: value[:_PARAM_LIMIT] for name, value in values.items()}})

    def log_inputs(self, inputs: Mapping[str, Any], data_sets: Sequence[DataSet] = ()) -> None:
        """Where the stage read from, and the data sets among it."""
        for name, value in inputs.items():
            self.set_tag(f"input.{name}", json.dumps(value) if isinstance(value, Mapping) else str(value))
        self.log_data_sets(data_sets)

    def log_data_sets(self, data_sets: Sequence[DataSet]) -> None:
        """Data sets as MLflow's inputs."""
        self.data_sets += data_sets
        for item in data_sets:
            self.put({"op": "dataset", **item.to_json()})

    def log_result(self, result: StageResult) -> None:
        """A stage's metrics, counts, message and artifacts; a metrics.jsonl among them becomes curves (but for what was
        logged live), and the run's description links its pages. Folders are kept that hold figures and tables alone."""
        pages, curves = list[str](), set[str]()
        for name, location in result.artifacts.items():
            path = Path(location)
            if path.name.endswith(_CURVES):
                curves |= self._log_curves(path)
            elif path.is_file() and path.stat().st_size <= _ARTIFACT_LIMIT:
                self.log_file(path)
                pages += [f"[{name}]({OWN_ARTIFACTS}{path.name})"] if path.suffix == ".html" else []
            elif _holds_figures(path):
                self._log_figures(path)
            self.set_tag(f"artifact.{name}", location)
        metrics = {**result.metrics, **{f"count/{name}": value for name, value in result.counts.items()}}
        # A curve ends with its metric already; another point at step 0 would be none of the curve's.
        self.log_metrics({name: value for name, value in metrics.items() if name not in curves})
        for name, value in result.made.items():
            self.set_tag(f"cloc.{name}", value)
        self.set_tag("mlflow.note.content", "\n\n".join([result.message, *pages]))
        if self.run_id:
            place = f"#/experiments/{OWN_EXPERIMENT}/runs/{self.run_id}/artifacts/"
            self.pages = [page.replace(OWN_ARTIFACTS, place) for page in pages]

    def log_file(self, path: Path, *, folder: str = "") -> None:
        """A file, or a folder's files, as artifacts in a folder of the run's."""
        self.put({"op": "file", "source": str(path.absolute()), "folder": folder})

    def _log_figures(self, folder: Path) -> None:
        """Logs a folder of figures and tables whole; MLflow's pages show those tables that are JSON."""
        self.log_file(folder, folder=folder.name)
        tables = [{"path": f"{folder.name}/{path.name}", "type": "table"} for path in sorted(folder.glob("*.json"))]
        if tables:
            self.set_tag("mlflow.loggedArtifacts", json.dumps(tables))

    def _log_curves(self, path: Path) -> set[str]:
        """Logs the rows of a file of JSON lines, of which the run keeps those that it does not have; returns the names
        of the curves."""
        rows: list[Row] = [json.loads(line) for line in path.read_text().splitlines()]
        self.log_rows(rows)
        left = take_over(self.uri, run_id=self.run_id, key=self._identity.key, send=False)
        self._left_live = sum(item.rows for item in left) if left else None
        return {name for row in rows for name in row} - NO_METRICS

    def set_tag(self, name: str, value: str) -> None:
        """A tag; names are reduced to the characters that MLflow takes."""
        self.put({"op": "tags", "values": {metric_name(name): value[:_TAG_LIMIT]}})

    def fail(self, reason: str) -> None:
        """Records why the stage failed."""
        self.set_tag("cloc.failure", reason)

    def dress(self, tags: Mapping[str, str]) -> None:
        """Tags that its experiment gets where it lacks them."""
        self.put({"op": "experiment", "values": dict(tags)})

    def end(self, status: str) -> None:
        """Ends it (FINISHED, FAILED or KILLED), and says what MLflow has of it where there was trouble."""
        take_over(self.uri, run_id=self.run_id, key=self._identity.key, send=True)
        self.put_end(status)
        self.let_go()

    def put_end(self, status: str) -> None:
        """That it ended now; recording may go on."""
        self.put({"op": "end", "status": status, "time": now()})

    def let_go(self) -> None:
        """Ends recording, not the run."""
        self._outbox.close()
        if text := self._summary():
            print(text, file=sys.stderr, flush=True)

    def _summary(self) -> str:
        (rows, left), pending, place = self._outbox.rows, self._outbox.pending, self._outbox.place
        if not (self._outbox.trouble or self._left_live):
            return ""
        if not pending:
            return f"MLflow at {shown(self.uri)} has " + (f"all {rows:,} rows" if rows else "all of this run")
        if self._left_live is not None:
            left = min(left, self._left_live)
        has = f"{rows - left:,} of {rows:,} rows" if rows else "not all of this run"
        rest = f"the rest is kept in {place}: `cloc runs deliver` sends it" if place else "the rest is lost"
        return f"MLflow at {shown(self.uri)} has {has}, {rest}"


def attach(reference: str, uri: str) -> Outbox:
    """The outbox of a run that exists or will, by `Run.reference` and its store, to record rows from another process;
    they are sent by `send`, whose first call imports mlflow."""
    by_key = reference.startswith(_BY_KEY)
    identity = Identity(made_here=False, run_id="" if by_key else reference)
    if by_key:
        identity = replace(identity, key=reference.removeprefix(_BY_KEY))
    return Outbox(identity, uri, attached=True, immediate=False)


def _holds_figures(folder: Path) -> bool:
    """Whether a folder holds small pictures, CSV and JSON files and nothing else: models and data are not copied."""
    files = list(folder.iterdir()) if folder.is_dir() else []
    known = all(path.is_file() and path.suffix in _FIGURE_SUFFIXES for path in files)
    return bool(files) and known and sum(path.stat().st_size for path in files) <= _ARTIFACT_LIMIT


def begin(config: TrackingConfig, identity: Identity, *, attached: bool = False) -> Run:
    """Begins to record a run, which is found or made at once where the store answers.

    Args:
        config: section `tracking`.
        identity: of the run.
        attached: whether it goes on when recording ends here.

    Raises:
        ConfigError: the store can never be used as it is.
    """
    uri = tracking_uri(config)
    outbox = Outbox(identity, uri, attached=attached)
    try:
        outbox.send()
    except Exception as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        if not is_away(cause):
            raise unusable(uri, cause) from None
        outbox.went_away(error)
    else:
        for item in deliver_older(uri):
            print(item, file=sys.stderr, flush=True)
    return Run(outbox, identity)


@contextmanager
def recorded(run: Run, *, says_why: bool = False) -> Iterator[Run]:
    """Ends a run as what is done meanwhile ends; with the reason of a failure where `says_why`."""
    try:
        yield run
    except BaseException as error:
        if says_why:
            run.fail(str(error))
        run.end("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    run.end("FINISHED")


@contextmanager
def stage_run(config: TrackingConfig, *, stage: str, settings: Mapping[str, Any], name: str = "") -> Iterator[Run]:
    """The run of one stage, under the pipeline's run where there is one. Processes that the stage starts know it by the
    variables `STAGE_RUN` and `STAGE_URI`.

    Args:
        config: section `tracking`.
        stage: its name.
        settings: that it reads.
        name: of the run; the stage's without one. What MLFLOW_RUN_NAME says is for the run above it, if any.
    """
    tags, parent = {**common_tags(), "cloc.kind": "stage", "cloc.stage": stage}, parent_of_here()
    given = "" if parent else os.environ.get(NAME_VARIABLE, "")
    run = begin(config, Identity(experiment_name(config), name=given or name or stage, tags=tags, parent=parent))
    run.log_settings(settings)
    known = {STAGE_RUN: run.reference, STAGE_URI: run.uri, **outbox_variable()}
    with recorded(run), exported(known), sampled(lambda row: run.log_rows([row])):
        yield run


def outbox_variable() -> dict[str, str]:
    """Where processes that are started keep what they record."""
    return {OUTBOX_VARIABLE: str(outbox_folder())}
