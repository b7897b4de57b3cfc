"""Records: what is said to a run, as JSON, in the order that it was said; and how each is told to MLflow.

    {"op": "params",   "values": {NAME: TEXT}}
    {"op": "points",   "values": [[NAME, VALUE, TIMESTAMP, STEP], ...]}         single numbers
    {"op": "rows",     "rows": [{"step", "timestamp", NAME: VALUE, ...}, ...]}  curves
    {"op": "tags",     "values": {NAME: TEXT}}
    {"op": "dataset",  "name", "digest", "source_type", "source", "profile", "context"}
    {"op": "text",     "path", "text"}                                          an artifact
    {"op": "file",     "source", "folder"}                                      an artifact, or a folder of them
    {"op": "experiment", "values": {NAME: TEXT}}                                 tags that its experiment lacks
    {"op": "end",      "status", "time"}

Telling one again changes nothing: so it can be told again when an answer was lost. MLflow's databases hold a point once
(key, timestamp, step, value). Rows are not even sent again: the run's history is asked for their steps after every
trouble, which also holds where a training went back some steps and wrote them anew.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cloc.tracking.identity import Identity, resolve
from cloc.tracking.rows import Point, Row, first_metric, metric_name, points_of
from cloc.tracking.store import experiment_id, log_points, reachable
from cloc.tracking.troubles import Away, judged

Record = Mapping[str, Any]
OWN_ARTIFACTS = "cloc-artifacts:"
"""In a tag's value: where MLflow's pages show this run's artifacts."""
OWN_EXPERIMENT = "cloc-experiment:"
"""In the value of a tag, of a run or an experiment: the id of the experiment."""
_AT_ONCE = 1000  # metrics that MLflow takes in a request
_TAGS_AT_ONCE = 100


class Teller:
    """Tells records to one run of one store.

    Args:
        identity: of the run.
        uri: of the store.
        fresh: whether nobody can have made the run yet.

    Attributes:
        run_id: "" as long as the run was not found or made.
    """

    def __init__(self, identity: Identity, uri: str, *, fresh: bool) -> None:
        self.identity, self.uri, self.run_id = identity, uri, identity.run_id
        self._client: Any = None
        self._fresh = fresh
        self._steps = dict[str, set[int]]()

    def open(self) -> None:
        """Finds or makes the run, where that is not done.

        Raises:
            Away: the store does not answer, or does not make it.
        """
        with self._judging():
            client = self._client or reachable(self.uri)
            if not self.run_id:
                fresh, self._fresh = self._fresh, False
                made = self.identity.made_here
                experiment = experiment_id(client, self.identity.experiment, uri=self.uri) if made else ""
                self.run_id = resolve(client, self.identity, experiment, may_be_there=not fresh)
                if not self.run_id:
                    raise Away("it does not have the run yet")
            self._client = client

    def tell(self, records: Sequence[Record]) -> None:
        """Tells records, which are of one kind.

        Raises:
            Away: they are to be told again later.
            Refused: they would be refused again.
        """
        self.open()
        with self._judging():
            _TELL[records[0]["op"]](self, records)

    @contextmanager
    def _judging(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._steps.clear()  # what arrived is not known
            verdict = judged(error)
            if isinstance(verdict, Away):
                self._client = None  # asked first, and not for long, whether it is back
            if verdict is error:
                raise
            raise verdict from error

    def _params(self, records: Sequence[Record]) -> None:
        from mlflow.entities import Param

        for values in _slices([Param(*item) for record in records for item in record["values"].items()]):
            self._client.log_batch(self.run_id, params=values)

    def _tags(self, records: Sequence[Record]) -> None:
        from mlflow.entities import RunTag

        values = {name: self._linked(value) for record in records for name, value in record["values"].items()}
        for tags in _slices([RunTag(*item) for item in values.items()]):
            self._client.log_batch(self.run_id, tags=tags)

    def _linked(self, value: str) -> str:
        if OWN_ARTIFACTS not in value and OWN_EXPERIMENT not in value:
            return value
        experiment = self._client.get_run(self.run_id).info.experiment_id
        value = value.replace(OWN_ARTIFACTS, f"#/experiments/{experiment}/runs/{self.run_id}/artifacts/")
        return value.replace(OWN_EXPERIMENT, str(experiment))

    def _points(self, records: Sequence[Record]) -> None:
        self._log_points([tuple(item) for record in records for item in record["values"]])

    def _rows(self, records: Sequence[Record]) -> None:
        rows = [row for record in records for row in record["rows"] if not self._has(row)]
        self._log_points([point for row in rows for point in points_of(row)])
        for row in rows:
            self._steps[first_metric(row)].add(int(row["step"]))

    def _has(self, row: Row) -> bool:
        """Whether the run has a row's step already: rows are told whole, one metric tells of the others."""
        name = first_metric(row)
        if name not in self._steps:
            history = self._client.get_metric_history(self.run_id, metric_name(name)) if name else ()
            self._steps[name] = {item.step for item in history}
        return int(row["step"]) in self._steps[name]

    def _log_points(self, points: Sequence[Point]) -> None:
        for start in range(0, len(points), _AT_ONCE):
            log_points(self._client, self.run_id, points[start : start + _AT_ONCE], uri=self.uri)

    def _dataset(self, records: Sequence[Record]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        made = []
        for record in records:
            fields = {name: record[name] for name in ("name", "digest", "source_type", "source", "profile")}
            tags = [InputTag("mlflow.data.context", record["context"])] if record["context"] else []
            made.append(DatasetInput(Dataset(**fields), tags))
        self._client.log_inputs(self.run_id, datasets=made)

    def _text(self, records: Sequence[Record]) -> None:
        for record in records:
            self._client.log_text(self.run_id, record["text"], record["path"])

    def _file(self, records: Sequence[Record]) -> None:
        for record in records:
            log = self._client.log_artifacts if Path(record["source"]).is_dir() else self._client.log_artifact
            log(self.run_id, record["source"], record["folder"] or None)

    def _experiment(self, records: Sequence[Record]) -> None:
        number = self._client.get_run(self.run_id).info.experiment_id
        present = self._client.get_experiment(number).tags
        for record in records:
            for name, value in record["values"].items():
                if name not in present:
                    self._client.set_experiment_tag(number, name, value.replace(OWN_EXPERIMENT, number))

    def _end(self, records: Sequence[Record]) -> None:
        for record in records:
            self._client.set_terminated(self.run_id, record["status"], record["time"])


_TELL: Mapping[str, Callable[[Teller, Sequence[Record]], None]] = {
    "params": Teller._params,
    "points": Teller._points,
    "rows": Teller._rows,
    "tags": Teller._tags,
    "dataset": Teller._dataset,
    "text": Teller._text,
    "file": Teller._file,
    "experiment": Teller._experiment,
    "end": Teller._end,
}


def together(records: Sequence[Record]) -> list[Record]:
    """The first of some records, and those after it that go into the same request: rows."""
    group, size = list[Record](), 0
    for record in records:
        if record["op"] != "rows" and group:
            break
        size += sum(2 * len(row) for row in record.get("rows", ()))
        if group and size > _AT_ONCE:
            break
        group.append(record)
        if record["op"] != "rows":
            break
    return group


def _slices(values: list[Any]) -> list[list[Any]]:
    return [values[start : start + _TAGS_AT_ONCE] for start in range(0, len(values), _TAGS_AT_ONCE)]
