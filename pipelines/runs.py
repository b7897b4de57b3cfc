"""Runs of the pipeline on a server: start, follow, find, end."""

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import kfp_server_api

from cloc.errors import ClocError, ConfigError
from pipelines.server import Server, ServerError, display_name_filter
from pipelines.tasks import ENDED, Task, failure_in, pipeline_of, read_log, tasks_of
from pipelines.upload import Version

_POLL_SECONDS = 10.0
_PATIENCE = 5  # failed looks at a run in a row, before giving up
_NEWEST = {"sort_by": "created_at desc", "page_size": 20}
_SEARCHED = 200  # runs that are looked through for the start of an id


class RunFailed(ClocError):  # noqa: N818 (a verdict, not a fault)
    """A run did not succeed; the message is the reason, and the exit code that of the task that failed."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def experiment_id(server: Server, name: str, *, create: bool) -> str | None:
    """Id of an experiment by its name; one that is not there is created or None."""
    found = server.ask(
        server.client.experiments.experiment_service_list_experiments,
        filter=display_name_filter("EQUALS", name),
        namespace=server.namespace,
    )
    if found.experiments:
        return str(found.experiments[0].experiment_id)
    if not create:
        return None
    wanted = kfp_server_api.V2beta1Experiment(display_name=name, namespace=server.namespace)
    return str(server.ask(server.client.experiments.experiment_service_create_experiment, wanted).experiment_id)


def start(
    server: Server,
    version: Version,
    *,
    name: str,
    experiment: str,
    arguments: Mapping[str, Any],
    service_account: str | None = None,
) -> Any:
    """Starts a run of an uploaded version.

    Args:
        server: where.
        version: of the pipeline.
        name: of the run.
        experiment: name of its experiment, which is created when missing.
        arguments: of the pipeline.
        service_account: of its pods; else the server's default.

    Returns:
        The run, as the server tells of it.

    Raises:
        ServerError: the server refuses.
    """
    wanted = kfp_server_api.V2beta1Run(
        display_name=name,
        experiment_id=experiment_id(server, experiment, create=True),
        pipeline_version_reference=reference(version),
        runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters=dict(arguments)),
        service_account=service_account,
    )
    made = server.ask(server.client.runs.run_service_create_run, wanted)
    if not made.run_id:
        reason = made.error.message if made.error else "it gave no id back"
        raise ServerError(f"{server.where} started no run: {reason}")
    return made


def reference(version: Version) -> kfp_server_api.V2beta1PipelineVersionReference:
    """An uploaded version, as a run names it."""
    return kfp_server_api.V2beta1PipelineVersionReference(
        pipeline_id=version.pipeline_id, pipeline_version_id=version.version_id
    )


def newest(server: Server, *, limit: int, experiment: str | None = None) -> list[Any]:
    """The newest runs. Raises ConfigError for an experiment that is not there."""
    only = {}
    if experiment is not None:
        only["experiment_id"] = experiment_id(server, experiment, create=False)
        if only["experiment_id"] is None:
            raise ConfigError(f"{server.where} has no experiment {experiment!r}")
    return list(islice(_runs(server, **only), limit))


def find(server: Server, wanted: str) -> Any:
    """A run by its id, the start of its id (4 characters or more), or its name; "latest" is the newest.

    Raises:
        ConfigError: there is none, or there are several.
    """
    if len(wanted) == 36:
        try:
            return server.ask(server.client.runs.run_service_get_run, wanted)
        except ServerError as error:
            if error.status != 404:
                raise
    if wanted == "latest":
        found = list(islice(_runs(server), 1))
    else:
        found = list(_runs(server, filter=display_name_filter("EQUALS", wanted)))
        if not found and len(wanted) >= 4:
            found = [run for run in islice(_runs(server), _SEARCHED) if run.run_id.startswith(wanted)]
    if len(found) > 1:
        raise ConfigError(f"{len(found)} runs are {wanted!r} on {server.where}; name one by its id: {_ids(found)}")
    if not found:
        raise ConfigError(f"{server.where} has no run {wanted!r}; `cloc pipeline status` lists the newest")
    return found[0]


def terminate(server: Server, run: Any) -> None:
    """Ends a run. Raises ConfigError when it has ended."""
    if str(run.state) in ENDED:
        raise ConfigError(f"run {run.run_id} has ended as {run.state}; there is nothing to terminate")
    server.ask(server.client.runs.run_service_terminate_run, run.run_id)


def wait(server: Server, run_id: str, *, say: Callable[[str], None]) -> Any:
    """Follows a run to its end, with a line a task that starts, is tried again, or ends.

    Args:
        server: where it runs.
        run_id: of the run.
        say: takes the lines.

    Returns:
        The run, when it succeeded.

    Raises:
        RunFailed: it did not.
        ServerError: the server is gone for good, or refuses.
        KeyboardInterrupt: Ctrl-C; the run goes on, and a line has said so.
    """
    try:
        return _wait(server, run_id, say)
    except KeyboardInterrupt:
        say(f"the run goes on: `cloc pipeline status {run_id}` shows it, `cloc pipeline terminate {run_id}` ends it")
        raise


def duration(seconds: float | None) -> str:
    """Seconds for people: "35 s", "12.3 min", "2.1 h"."""
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def run_seconds(run: Any) -> float | None:
    """How long a run took, or takes so far."""
    if run.created_at is None or run.created_at.year <= 1970:
        return None
    ended = run.finished_at if str(run.state) in ENDED and run.finished_at else datetime.now(UTC)
    return max(0.0, (ended - run.created_at).total_seconds())


def _wait(server: Server, run_id: str, say: Callable[[str], None]) -> Any:
    shown: dict[str, Task] = {}
    pipeline: dict[str, Any] | None = None
    misses = 0
    while True:
        try:
            run = server.ask(server.client.runs.run_service_get_run, run_id)
            pipeline = pipeline or pipeline_of(server, run)
            misses = 0
        except ServerError as error:
            misses += 1
            if misses >= _PATIENCE:
                raise ServerError(f"{error}; the run goes on: {run_id}", status=error.status) from None
            time.sleep(_POLL_SECONDS)
            continue
        tasks = tasks_of(run, pipeline)
        for task in tasks:
            for line in _changes(shown.get(task.name), task):
                say(line)
            shown[task.name] = task
        if str(run.state) in ENDED:
            break
        time.sleep(_POLL_SECONDS)
    if run.state == "SUCCEEDED":
        say(f"run {run_id} succeeded after {duration(run_seconds(run))}")
        return run
    raise _failure(server, run, tasks)


def _changes(before: Task | None, now: Task) -> Iterator[str]:
    """What is new of a task."""
    if now.state == "PENDING" or (before and (before.state, before.retries) == (now.state, now.retries)):
        return
    if before and now.retries > before.retries:
        yield f"{now.title}: its pod failed, attempt {now.retries + 1}"
    if before and before.state == now.state:
        return
    if now.reused:
        yield f"{now.title}: nothing changed, taken from the cache"
    elif now.state in ENDED and now.seconds is not None:
        yield f"{now.title}: {now.state.lower()} after {duration(now.seconds)}"
    else:
        yield f"{now.title}: {now.state.lower()}"


def _failure(server: Server, run: Any, tasks: list[Task]) -> RunFailed:
    """Why a run failed: the last line of the task that failed first, and its exit code."""
    failed = [task for task in tasks if task.state == "FAILED"]
    ended = f"run {run.run_id} on {server.where} ended as {run.state}"
    if failed:
        first = min(failed, key=lambda task: task.finished or datetime.max.replace(tzinfo=UTC))
        try:
            reason, code = failure_in(read_log(server, run.run_id, first))
        except ServerError as error:
            return RunFailed(f"{ended}: {first.title} failed; {error}", exit_code=1)
        return RunFailed(f"{ended}: {first.title}: {reason}", exit_code=code)
    history = [status.error.message for status in run.state_history or () if status.error and status.error.message]
    reason = run.error.message if run.error and run.error.message else (history[-1] if history else "no task failed")
    return RunFailed(f"{ended}: {reason}", exit_code=1)


def _runs(server: Server, **only: Any) -> Iterator[Any]:
    within = {} if "experiment_id" in only else {"namespace": server.namespace}
    return server.pages(server.client.runs.run_service_list_runs, "runs", **_NEWEST, **within, **only)


def _ids(runs: list[Any]) -> str:
    return ", ".join(run.run_id for run in runs[:5])
