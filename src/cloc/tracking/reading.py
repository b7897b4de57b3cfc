"""Recorded runs, to read: the newest, one by its id, the start of it or its name, the stages of one, what they keep."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cloc.config.schema import TrackingConfig
from cloc.errors import ConfigError
from cloc.tracking.recorded import Family, Recorded, recorded
from cloc.tracking.registered import download
from cloc.tracking.store import asked, connect, existing, experiment_name, experiment_of, tracking_uri

LATEST = "latest"
"""Stands for the newest run of a pipeline, or of a stage that belongs to none."""
_PAGE, _ID = 1000, 32
_SHORTEST = 4  # characters of an id that may stand for it
_TOP = "tags.`mlflow.parentRunId` IS NULL"


class Reader:
    """Runs of the experiment `tracking.experiment` in a store.

    Args:
        config: section `tracking`.
        everywhere: whether runs of all experiments are looked at.

    Raises:
        ConfigError: from every method: there is no such store, experiment or run.
    """

    def __init__(self, config: TrackingConfig, *, everywhere: bool = False) -> None:
        self.uri = existing(tracking_uri(config))
        self._client = connect(self.uri)
        with asked(self.uri, "cannot be read", hint="set tracking.uri or MLFLOW_TRACKING_URI"):
            found = [experiment_of(self._client, experiment_name(config))]
            if everywhere:
                found = list(self._experiments())
        if found == [None]:
            raise ConfigError(f"MLflow at {self.uri} has no experiment {config.experiment!r}; set tracking.experiment")
        self._names = {str(item.experiment_id): str(item.name) for item in found}

    def newest(self, *, limit: int, condition: str = "") -> list[Family]:
        """Pipelines' runs, and those of stages that belong to none, with their stages; the newest first.

        Args:
            limit: how many at most.
            condition: in MLflow's language, `metrics."eval/region/test/mAcc" > 0.5`.
        """
        what = f"cannot be asked for the runs where {condition}" if condition else "cannot be read"
        with asked(self.uri, what):
            condition = " and ".join(part for part in (condition, _TOP) if part)
            runs = [recorded(run) for run in self._search(condition, limit=limit)]
        return self.families(runs)

    def families(self, runs: Sequence[Recorded]) -> list[Family]:
        """Runs with their stages."""
        parents = [run for run in runs if not run.stage]
        stages: dict[str, list[Recorded]] = {run.run_id: [] for run in parents}
        if parents:
            since = min(run.started for run in parents)
            condition = f"tags.`cloc.kind` = 'stage' and attributes.start_time >= {since}"
            with asked(self.uri, "cannot be read"):
                found = [recorded(item) for item in self._search(condition)]
            for item in sorted(found, key=lambda item: (item.started, item.run_id)):
                if item.parent in stages:
                    stages[item.parent].append(item)
        return [Family(run, tuple(stages.get(run.run_id, ()))) for run in runs]

    def find(self, reference: str) -> Recorded:
        """The run with this id, the start of an id, or name; or the newest, for `LATEST`."""
        if reference == LATEST and (newest := self.newest(limit=1)):
            return newest[0].run
        conditions = [f"attributes.run_id = '{reference}'"] if reference.isalnum() else []
        conditions += [f"attributes.run_name = {name}"] if (name := quoted(reference)) else []
        if _SHORTEST <= len(reference) <= _ID and reference.isalnum():
            conditions.append(f"attributes.run_id LIKE '{reference}%'")
        with asked(self.uri, "cannot be read"):
            for condition in conditions:
                found = [recorded(run) for run in self._search(condition)]
                if len(found) > 1:
                    listed = ", ".join(str(run) for run in found[:4]) + (", ..." if len(found) > 4 else "")
                    raise ConfigError(f"run {reference!r} is one of {len(found)}: {listed}; give the start of one's id")
                if found:
                    return found[0]
        raise ConfigError(
            f"run {reference!r}: no such folder, and no run of that id or name in {self._where()} of MLflow at "
            f"{self.uri}"
        )

    def get(self, run_id: str) -> Recorded | None:
        """The run with this id, of any experiment; None where there is none."""
        from mlflow.exceptions import MlflowException

        try:
            return recorded(self._client.get_run(run_id)) if run_id else None
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            with asked(self.uri, "cannot be read"):
                raise

    def where(self, condition: str) -> list[Recorded]:
        """Runs by a condition in MLflow's language, of all experiments, in the order that they began."""
        with asked(self.uri, "cannot be read"):
            ids = [str(item.experiment_id) for item in self._experiments()]
            found = [recorded(run) for run in self._search(condition, experiments=ids)]
        return sorted(found, key=lambda item: (item.started, item.run_id))

    def children(self, run: Recorded) -> list[Recorded]:
        """The stages of a pipeline's run, in the order that they began."""
        condition = f"tags.`mlflow.parentRunId` = '{run.run_id}'"
        with asked(self.uri, "cannot be read"):
            found = [recorded(item) for item in self._search(condition, experiments=[run.experiment])]
        return sorted(found, key=lambda item: (item.started, item.run_id))

    def artifacts(self, run: Recorded) -> list[str]:
        """Names of what a run keeps, at the top."""
        with asked(self.uri, f"does not list the files of run {run}"):
            return [item.path for item in self._client.list_artifacts(run.run_id)]

    def files(self, run: Recorded, names: Sequence[str]) -> dict[str, bytes]:
        """Artifacts of a run by name: those of `names` that there are."""
        there = set(self.artifacts(run)) & set(names)
        with asked(self.uri, f"does not give the files of run {run}"):
            root = self._client.get_run(run.run_id).info.artifact_uri
            return {name: Path(download(f"{root}/{name}", uri=self.uri)).read_bytes() for name in sorted(there)}

    def experiment(self, run: Recorded) -> str:
        """Name of a run's experiment; its id where that is another one than is read."""
        return self._names.get(run.experiment, run.experiment)

    def _where(self) -> str:
        names = list(self._names.values())
        return f"the experiment {names[0]!r}" if len(names) == 1 else "all experiments"

    def _experiments(self) -> Iterator[Any]:
        yield from _pages(lambda token: self._client.search_experiments(max_results=_PAGE, page_token=token))

    def _search(
        self, condition: str = "", *, limit: int | None = None, experiments: Sequence[str] = ()
    ) -> Iterator[Any]:
        """MLflow's runs, the newest first."""
        size = min(_PAGE, limit or _PAGE)
        ids, order = list(experiments or self._names), ["attributes.start_time DESC"]
        pages = _pages(
            lambda token: self._client.search_runs(ids, condition, max_results=size, order_by=order, page_token=token)
        )
        for number, run in enumerate(pages, start=1):
            yield run
            if number == limit:
                return


def _pages(ask: Any) -> Iterator[Any]:
    token: str | None = None
    while True:
        page = ask(token)
        yield from page
        token = page.token
        if not token:
            return


def quoted(text: str) -> str:
    """A value in MLflow's language, which has no escapes: "" for a text with both quotes, which cannot be written."""
    if "'" in text and '"' in text:
        return ""
    return f'"{text}"' if "'" in text else f"'{text}'"
