"""`cloc run` and `cloc pipeline`: the DAG, here and on a Kubeflow server.

The DAG lives outside the package (`pipelines/` and `components/` of a checkout), since the package never imports kfp.
"""

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import click

import cloc
from cloc.cli.options import resolve, settings_options
from cloc.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])

_COMPILED = "pipelines/cloc_pipeline.yaml"


def _pipelines(module: str) -> ModuleType:
    checkout = str(Path(cloc.__file__).parents[2])
    if checkout not in sys.path:
        sys.path.append(checkout)
    try:
        return importlib.import_module(f"pipelines.{module}")
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] not in ("pipelines", "components", "kfp"):
            raise
        raise ConfigError(
            f"the pipeline needs {error.name}: run it in a checkout of cloc with `pip install -e '.[pipeline]'`"
        ) from None


def _options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator."""

    def decorate(function: F) -> F:
        for option in reversed(decorators):
            function = option(function)
        return function

    return decorate


server_options = _options(
    click.option("--host", help="URL of the server's API.  [default: KFP_ENDPOINT, or the cluster this runs in]"),
    click.option("--namespace", help="Yours, on a server for several users.  [default: KFP_NAMESPACE, or the pod's]"),
    click.option("--token", envvar="KFP_TOKEN", help="Bearer token; better in KFP_TOKEN.  [default: the pod's]"),
)
order_options = _options(
    click.option("--data", help="Collection to use (s3:// prefix or path that the tasks see)."),
    click.option("--experiment", default="cloc", show_default=True, help="Experiment; made when missing."),
    click.option("--image", help="Image of the tasks.  [default: CLOC_IMAGE, else the components' own]"),
    click.option("--service-account", help="Service account of the pods.  [default: the server's]"),
    click.option("-P", "parameters", multiple=True, metavar="NAME=VALUE", help="A parameter of the pipeline: gpus=2."),
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@click.option("--data", help="Collection that exists (splits train and test); without it the demo data is rendered.")
@click.option("--out", default="runs/demo", show_default=True, help="Folder for everything that the run makes.")
@click.option("--cache/--no-cache", default=True, show_default=True, help="Reuse results of equal tasks.")
@click.option("--retries", default=0, show_default=True, help="Try a failed task again so many times; gates are not.")
@settings_options
def run(data: str | None, out: str, cache: bool, retries: int, **settings: Any) -> None:
    """Run the whole pipeline on this machine, by KFP's local runner.

    \b
    cloc run                                   the demo
    cloc run --data data/photos --out runs/photos
    """
    _pipelines("local").run_local(resolve(**settings), data=data, out=out, cache=cache, retries=retries)


@click.group()
def pipeline() -> None:
    """Compile the pipeline, and run it on a Kubeflow server.

    \b
    cloc pipeline submit --host http://localhost:8888 --data s3://bucket/photos --wait

    The server is named by --host or KFP_ENDPOINT; within a cluster it is found. Who asks is told by --token, by a
    file that KF_PIPELINES_SA_TOKEN_PATH names (read anew for each request), or by a browser's session cookie
    ("name=value") in KFP_COOKIE. KF_PIPELINES_UI_ENDPOINT is the address of pages where it is another one;
    SSL_CERT_FILE names a cluster's own authority.
    """


@pipeline.command(name="compile")
@click.option("--out", default=_COMPILED, show_default=True, help="File to write.")
@click.option("--image", default="", help="Image of the tasks.  [default: the components' own]")
def compile_(out: str, image: str) -> None:
    """Compile the pipeline to YAML.

    \b
    cloc pipeline compile --out cloc.yaml --image registry.example/cloc-python:0.1.0
    """
    _pipelines("compile").compile_pipeline(out, image=image)
    click.echo(f"wrote {out}")


@pipeline.command(short_help="Check a compiled pipeline before it is uploaded.")
@click.argument("file", default=_COMPILED)
@settings_options
def validate(file: str, **settings: Any) -> None:
    """Check a compiled pipeline: KFP's schema, its images, its parameters against the settings.

    \b
    cloc pipeline validate cloc.yaml --preset b16
    """
    found = _pipelines("validate").validate(file, resolve(**settings))
    click.echo(f"{file}: valid; {len(found.tasks)} tasks, {len(found.parameters)} parameters, image {found.images[0]}")


@pipeline.command()
@click.option("--name", default="", help="Name of the run.  [default: cloc and the time]")
@click.option("--wait/--no-wait", default=False, show_default=True, help="Follow it; exit with the failed task's code.")
@order_options
@json_option
@server_options
@settings_options
def submit(name: str, wait: bool, as_json: bool, **given: Any) -> None:
    """Start a run on a Kubeflow server.

    \b
    cloc pipeline submit --data s3://bucket/photos --preset b16 -P gpus=8 --wait

    The pipeline is uploaded as a version named by release, git commit and content, once for each content. With --wait
    there is a line a task that starts or ends; Ctrl-C leaves the run running.
    """
    server, order = _connect(given), _order(given, name)
    say = _teller(as_json)
    made, version = _pipelines("submit").submit(server, order, say=say)
    told = {"run": made.run_id, "name": made.display_name, "version": version.name}
    told |= {"url": server.url(f"runs/details/{made.run_id}"), "state": str(made.state or "PENDING")}
    try:
        if wait:
            told["state"] = _pipelines("runs").wait(server, made.run_id, say=say).state
    except _pipelines("runs").RunFailed as error:
        told |= {"state": "FAILED", "reason": str(error)}
        raise
    finally:
        if as_json:
            click.echo(json.dumps(told, indent=1))


@pipeline.group()
def schedule() -> None:
    """Recurring runs: new data are labelled as they come.

    \b
    cloc pipeline schedule create --data s3://bucket/photos --cron "0 3 * * *"

    Tasks whose inputs have not changed are taken from the cache. With a place that keeps labels (-S
    pipeline.labels_at=s3://bucket/labels) a run labels new shards alone.
    """


@schedule.command()
@click.option("--cron", help='Minute, hour, day, month, weekday: "0 3 * * *"; or six fields, from seconds.')
@click.option("--every", help="Interval instead: 30m, 6h, 1d.")
@click.option("--catchup/--no-catchup", default=False, show_default=True, help="Make up for runs that were missed.")
@click.option("--name", default="", help="Name of the schedule.  [default: cloc]")
@order_options
@json_option
@server_options
@settings_options
def create(cron: str | None, every: str | None, catchup: bool, name: str, as_json: bool, **given: Any) -> None:
    """Start runs again and again, one at a time.

    \b
    cloc pipeline schedule create --data s3://bucket/photos --every 1w -S pipeline.labels_at=s3://bucket/labels
    """
    if bool(cron) == bool(every):
        raise ConfigError("say when: give --cron or --every, one of them")
    schedules = _pipelines("schedules")
    trigger = schedules.cron(cron) if cron else schedules.every(every)
    made, version = _pipelines("submit").schedule(
        _connect(given), _order(given, name), trigger=trigger, catchup=catchup, say=_teller(as_json)
    )
    if as_json:
        click.echo(json.dumps({**_schedule_json(made), "version": version.name}, indent=1))


@schedule.command(name="list")
@json_option
@server_options
def list_(as_json: bool, **given: Any) -> None:
    """All schedules.

    \b
    cloc pipeline schedule list --json
    """
    found = [_schedule_json(item) for item in _pipelines("schedules").everything(_connect(given))]
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        keys = ("schedule", "name", "state", "when")
        rows = [[_id(row["schedule"]), *(row[key] for key in keys[1:])] for row in found]
        _print_table([key.capitalize() for key in keys], rows)


@schedule.command()
@click.argument("schedule")
@server_options
def enable(schedule: str, **given: Any) -> None:
    """Let a schedule start runs again.

    \b
    cloc pipeline schedule enable nightly
    """
    _change(schedule, given, "enable", "starts runs again")


@schedule.command()
@click.argument("schedule")
@server_options
def disable(schedule: str, **given: Any) -> None:
    """Keep a schedule from starting runs.

    \b
    cloc pipeline schedule disable nightly
    """
    _change(schedule, given, "disable", "starts no runs")


@schedule.command()
@click.argument("schedule")
@server_options
def delete(schedule: str, **given: Any) -> None:
    """Remove a schedule; its runs stay.

    \b
    cloc pipeline schedule delete nightly
    """
    _change(schedule, given, "delete", "is gone")


@pipeline.command()
@click.argument("run", required=False)
@click.option("--experiment", help="Only runs of this experiment.")
@click.option("--limit", type=click.IntRange(min=1), default=10, show_default=True, help="How many runs.")
@json_option
@server_options
def status(run: str | None, experiment: str | None, limit: int, as_json: bool, **given: Any) -> None:
    """The newest runs, or the tasks of one.

    A RUN is its id, the start of its id, its name, or "latest".

    \b
    cloc pipeline status
    cloc pipeline status latest
    """
    server, runs = _connect(given), _pipelines("runs")
    if run is None:
        found = runs.newest(server, limit=limit, experiment=experiment)
        if as_json:
            click.echo(json.dumps([_run_json(item, server) for item in found], indent=1))
            return
        rows = [[_id(item.run_id), item.display_name, str(item.state), _length(item)] for item in found]
        _print_table(["Run", "Name", "State", "Time"], rows)
        return
    one = runs.find(server, run)
    tasks = _pipelines("tasks").tasks_of(one, _pipelines("tasks").pipeline_of(server, one))
    if as_json:
        click.echo(json.dumps({**_run_json(one, server), "tasks": [task.to_json() for task in tasks]}, indent=1))
        return
    click.echo(f"{one.display_name} ({one.run_id}): {one.state}, {_length(one)}; {_page(one, server)}")
    rows = [
        [task.title, task.state + (" (cache)" if task.reused else ""), runs.duration(task.seconds), str(task.retries)]
        for task in tasks
    ]
    _print_table(["Task", "State", "Time", "Retries"], rows)


@pipeline.command(short_help="What a task wrote; without a TASK, what the failed ones did.")
@click.argument("run")
@click.argument("task", required=False)
@server_options
def logs(run: str, task: str | None, **given: Any) -> None:
    """What a task wrote; without a TASK, what the failed ones did, or all when none failed.

    \b
    cloc pipeline logs latest grounding
    """
    server, tasks = _connect(given), _pipelines("tasks")
    one = _pipelines("runs").find(server, run)
    all_ = tasks.tasks_of(one, tasks.pipeline_of(server, one))
    wanted = [item for item in all_ if item.state == "FAILED"] or [item for item in all_ if item.pods]
    if task is not None:
        wanted = [item for item in all_ if task in (item.name, item.title)]
        if not wanted:
            raise ConfigError(f"the run has no task {task!r}; there are: {', '.join(item.name for item in all_)}")
    if not wanted:
        raise ConfigError(f"no task of run {one.run_id} has started: there are no logs")
    for item in wanted:
        if len(wanted) > 1:
            click.echo(f"== {item.title} ({item.name})")
        click.echo(tasks.read_log(server, one.run_id, item).rstrip("\n"))


@pipeline.command()
@click.argument("run")
@server_options
def terminate(run: str, **given: Any) -> None:
    """End a run.

    \b
    cloc pipeline terminate latest
    """
    server, runs = _connect(given), _pipelines("runs")
    one = runs.find(server, run)
    runs.terminate(server, one)
    click.echo(f"run {one.display_name!r} ({one.run_id}) is being ended")


@pipeline.command()
@click.argument("run", required=False)
@click.option("--open", "opened", is_flag=True, help="Open it in a browser, too.")
@server_options
def ui(run: str | None, opened: bool, **given: Any) -> None:
    """Address of the pipeline's page, or of a run's.

    \b
    cloc pipeline ui latest --open
    """
    server = _connect(given)
    if run is not None:
        page = _page(_pipelines("runs").find(server, run), server)
    else:
        found = _pipelines("upload").find_pipeline(server)
        if found is None:
            raise ConfigError(f"{server.where} has no pipeline of ours; `cloc pipeline submit` brings it")
        page = server.url(f"pipelines/details/{found}")
    click.echo(page)
    if opened:
        click.launch(page)


def _connect(given: dict[str, Any]) -> Any:
    return _pipelines("server").connect(host=given["host"], namespace=given["namespace"], token=given["token"])


def _order(given: dict[str, Any], name: str) -> Any:
    return _pipelines("submit").Order(
        config=resolve(given["params"], given["preset"], given["overrides"]),
        data=given["data"] or "",
        experiment=given["experiment"],
        name=name,
        image=given["image"] or "",
        service_account=given["service_account"],
        more=given["parameters"],
    )


def _change(name: str, given: dict[str, Any], verb: str, told: str) -> None:
    server, schedules = _connect(given), _pipelines("schedules")
    found = schedules.find(server, name)
    getattr(schedules, verb)(server, found)
    click.echo(f"schedule {found.display_name!r} ({found.recurring_run_id}) {told}")


def _teller(as_json: bool) -> Callable[[str], None]:
    """Prints lines as they come; beside JSON, on stderr."""
    return lambda line: click.echo(line, err=as_json)


def _id(whole: str) -> str:
    """An id; on a terminal, its start, which all verbs take."""
    return whole[:8] if sys.stdout.isatty() else whole


def _length(run: Any) -> str:
    runs = _pipelines("runs")
    return str(runs.duration(runs.run_seconds(run)))


def _page(run: Any, server: Any) -> str:
    return str(server.url(f"runs/details/{run.run_id}"))


def _run_json(run: Any, server: Any) -> dict[str, Any]:
    seconds = _pipelines("runs").run_seconds(run)
    return {
        "run": run.run_id,
        "name": run.display_name,
        "state": str(run.state),
        "created": run.created_at.isoformat() if run.created_at else None,
        "seconds": None if seconds is None else round(seconds, 1),
        "experiment_id": run.experiment_id,
        "schedule": run.recurring_run_id,
        "url": _page(run, server),
    }


def _schedule_json(schedule: Any) -> dict[str, Any]:
    return {
        "schedule": schedule.recurring_run_id,
        "name": schedule.display_name,
        "state": str(schedule.status or ""),
        "when": _pipelines("schedules").trigger_text(schedule),
        "catchup": not schedule.no_catchup,
    }


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal, else lines of fields separated by tabs."""
    if not sys.stdout.isatty():
        for row in (header, *rows):
            click.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*header)
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    Console().print(table)
