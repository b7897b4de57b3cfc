"""Brings the pipeline to a Kubeflow server and starts it there: once, or again and again."""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloc.config import Config
from cloc.errors import ConfigError
from cloc.pipeline.parameters import arguments
from pipelines import runs, schedules
from pipelines.cloc_pipeline import NAME
from pipelines.compile import compile_pipeline
from pipelines.server import Server
from pipelines.upload import Version, upload
from pipelines.validate import argument, check_arguments, check_schema, load


@dataclass(frozen=True)
class Order:
    """What is to be run.

    Attributes:
        config: all settings.
        data: collection, as the tasks see it; empty renders the demo's.
        experiment: experiment of the runs.
        name: of the run or of the schedule; empty makes one.
        image: image of the tasks; empty takes CLOC_IMAGE, else the components' own.
        service_account: of the pods; None takes the server's default.
        more: parameters of the pipeline as "NAME=VALUE", on top of what the settings give.
    """

    config: Config
    data: str = ""
    experiment: str = "cloc"
    name: str = ""
    image: str = ""
    service_account: str | None = None
    more: tuple[str, ...] = ()


def submit(server: Server, order: Order, *, say: Callable[[str], None]) -> tuple[Any, Version]:
    """Starts a run; the pipeline is uploaded unless the server has it.

    Args:
        server: where.
        order: what to run.
        say: takes a line a step.

    Returns:
        The run, and the version of the pipeline that it is of.

    Raises:
        ConfigError: the pipeline does not take these settings.
        ServerError: the server refuses.
    """
    version, given = _bring(server, order, say)
    name = order.name or f"{NAME} {time.strftime('%Y-%m-%d %H:%M:%S')}"
    made = runs.start(
        server,
        version,
        name=name,
        experiment=order.experiment,
        arguments=given,
        service_account=order.service_account,
    )
    say(f"started run {name!r} ({made.run_id}): {server.url(f'runs/details/{made.run_id}')}")
    return made, version


def schedule(
    server: Server, order: Order, *, trigger: Any, catchup: bool, say: Callable[[str], None]
) -> tuple[Any, Version]:
    """Starts runs again and again; with a place that keeps labels (`labels_at`), a run labels new shards alone.

    Args:
        server: where.
        order: what to run; it names data.
        trigger: what `schedules.cron` or `schedules.every` gave.
        catchup: whether missed runs are made up for.
        say: takes a line a step.

    Returns:
        The recurring run, and the version of the pipeline that its runs are of.

    Raises:
        ConfigError: it names no data, there is a schedule of this name, or the pipeline does not take the settings.
        ServerError: the server refuses.
    """
    if not order.data:
        raise ConfigError("a schedule is for data that grow; give --data")
    version, given = _bring(server, order, say)
    if not given.get("labels_at"):
        say("each run will label all data: -S pipeline.labels_at=s3://... keeps labels, so that only new shards are")
    name = order.name or NAME
    made = schedules.create(
        server,
        version,
        name=name,
        experiment=order.experiment,
        trigger=trigger,
        catchup=catchup,
        arguments=given,
        service_account=order.service_account,
    )
    page = server.url(f"recurringrun/details/{made.recurring_run_id}")
    say(f"scheduled {name!r} ({made.recurring_run_id}), {schedules.trigger_text(made)}: {page}")
    return made, version


def _bring(server: Server, order: Order, say: Callable[[str], None]) -> tuple[Version, dict[str, Any]]:
    """Compiles and uploads; gives the version and the pipeline's arguments."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / f"{NAME}.yaml"
        compile_pipeline(package, image=order.image or os.environ.get("CLOC_IMAGE", ""))
        compiled = load(package)
        check_schema(compiled)
        given = {"data": order.data, **arguments(order.config)}
        given.update(argument(compiled, item) for item in order.more)
        check_arguments(compiled, given)
        version = upload(server, package)
    say(f"pipeline version {version.name}: " + ("uploaded" if version.new else "the server has it"))
    return version, given
