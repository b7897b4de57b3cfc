"""Recurring runs of the pipeline on a server."""

import re
from collections.abc import Mapping
from typing import Any

import kfp_server_api

from cloc.errors import ConfigError
from pipelines.runs import experiment_id, reference
from pipelines.server import Server
from pipelines.upload import Version

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_CRON_FIELD = re.compile(r"[\dA-Za-z*?/,\-]+")


def create(
    server: Server,
    version: Version,
    *,
    name: str,
    experiment: str,
    trigger: kfp_server_api.V2beta1Trigger,
    catchup: bool,
    arguments: Mapping[str, Any],
    service_account: str | None = None,
) -> Any:
    """Starts runs of an uploaded version again and again, never two at a time.

    Args:
        server: where.
        version: of the pipeline, that all runs are of.
        name: of the schedule; the server holds no other of this name.
        experiment: name of the runs' experiment, which is created when missing.
        trigger: what `cron` or `every` gave.
        catchup: whether runs that were missed are made up for.
        arguments: of the pipeline.
        service_account: of its pods; else the server's default.

    Returns:
        The recurring run, as the server tells of it.

    Raises:
        ConfigError: there is a schedule of this name.
        ServerError: the server refuses.
    """
    for there in everything(server):
        if there.display_name == name:
            raise ConfigError(
                f"there is a schedule {name!r} ({there.recurring_run_id}); delete it, or give this one another --name"
            )
    wanted = kfp_server_api.V2beta1RecurringRun(
        display_name=name,
        experiment_id=experiment_id(server, experiment, create=True),
        pipeline_version_reference=reference(version),
        runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters=dict(arguments)),
        mode=kfp_server_api.RecurringRunMode.ENABLE,
        trigger=trigger,
        max_concurrency="1",
        no_catchup=not catchup,
        service_account=service_account,
    )
    return server.ask(server.client.recurring_runs.recurring_run_service_create_recurring_run, wanted)


def everything(server: Server) -> list[Any]:
    """All schedules, the newest first."""
    listing = server.client.recurring_runs.recurring_run_service_list_recurring_runs
    only = {"namespace": server.namespace, "sort_by": "created_at desc", "page_size": 100}
    return list(server.pages(listing, "recurring_runs", **only))


def find(server: Server, wanted: str) -> Any:
    """A schedule by its name, its id, or the start of its id (4 characters or more).

    Raises:
        ConfigError: there is none, or there are several.
    """
    there = everything(server)
    found = [item for item in there if wanted in (item.display_name, item.recurring_run_id)]
    if not found and len(wanted) >= 4:
        found = [item for item in there if item.recurring_run_id.startswith(wanted)]
    if not found:
        raise ConfigError(f"{server.where} has no schedule {wanted!r}; `cloc pipeline schedule list` shows all")
    if len(found) > 1:
        raise ConfigError(f"{len(found)} schedules are {wanted!r} on {server.where}; name one by its id")
    return found[0]


def enable(server: Server, schedule: Any) -> None:
    """Lets a schedule start runs again."""
    server.ask(server.client.recurring_runs.recurring_run_service_enable_recurring_run, schedule.recurring_run_id)


def disable(server: Server, schedule: Any) -> None:
    """Keeps a schedule from starting runs."""
    server.ask(server.client.recurring_runs.recurring_run_service_disable_recurring_run, schedule.recurring_run_id)


def delete(server: Server, schedule: Any) -> None:
    """Removes a schedule; its runs stay."""
    server.ask(server.client.recurring_runs.recurring_run_service_delete_recurring_run, schedule.recurring_run_id)


def cron(expression: str) -> kfp_server_api.V2beta1Trigger:
    """A trigger by a cron expression of five fields, or of six that begin with seconds, in the server's time zone.

    Raises:
        ConfigError: it is none.
    """
    fields = expression.split()
    if len(fields) not in (5, 6) or not all(_CRON_FIELD.fullmatch(field) for field in fields):
        raise ConfigError(
            f'--cron {expression!r}: write five fields (minute, hour, day, month, weekday), such as "0 3 * * *"'
        )
    # The server reads the first of five fields as seconds, too.
    whole = " ".join(["0", *fields] if len(fields) == 5 else fields)
    return kfp_server_api.V2beta1Trigger(cron_schedule=kfp_server_api.V2beta1CronSchedule(cron=whole))


def every(interval: str) -> kfp_server_api.V2beta1Trigger:
    """A trigger every so often: "30m", "6h", "1d".

    Raises:
        ConfigError: it is no interval.
    """
    found = re.fullmatch(r"([1-9]\d*)([smhdw])", interval.strip())
    if not found:
        raise ConfigError(f"--every {interval!r}: write a number and a unit (s, m, h, d, w), such as 6h")
    seconds = int(found[1]) * _UNITS[found[2]]
    periodic = kfp_server_api.V2beta1PeriodicSchedule(interval_second=str(seconds))
    return kfp_server_api.V2beta1Trigger(periodic_schedule=periodic)


def trigger_text(schedule: Any) -> str:
    """What starts a schedule's runs, as it is written on the command line."""
    trigger = schedule.trigger
    if trigger and trigger.cron_schedule:
        return f"cron {trigger.cron_schedule.cron}"
    if not trigger or not trigger.periodic_schedule:
        return "-"
    seconds = int(trigger.periodic_schedule.interval_second)
    unit = next(unit for unit, size in reversed(_UNITS.items()) if seconds % size == 0)
    return f"every {seconds // _UNITS[unit]}{unit}"
