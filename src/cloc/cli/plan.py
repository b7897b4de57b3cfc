"""`cloc plan`: what a training needs, before it is begun."""

import json
import re
import sys
from typing import Any

import click

from cloc.cli.options import resolve
from cloc.config import Config
from cloc.errors import ConfigError

_UNITS = {"k": 1e3, "m": 1e6, "b": 1e9}


class _Count(click.ParamType[int]):
    """A number of things: 2000000000, 2e9, 300M or 2B."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).replace("_", "").replace(",", "").lower()
        found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)([kmb]?)", text)
        try:
            number = float(found[1]) * _UNITS.get(found[2], 1) if found else -1.0
        except ValueError:
            number = -1.0
        if number < 1:
            self.fail(f"{value!r} is no number of things; write it as 2e9, 300M or 2B", param, ctx)
        return round(number)


@click.command()
@click.option("--images", type=_Count(), help="Images of the data set: 2e9, 300M.")
@click.option("--data", default="", help="A data set that is there: its images, shards and their size.")
@click.option("--model", help="Settings of a preset: demo, finetune, b16, l14, h14.  [default: b16]")
@click.option("--params", type=click.Path(), help="Settings file instead.")
@click.option("-S", "overrides", multiple=True, metavar="KEY=VALUE", help="Set one setting: train.micro_batch=256.")
@click.option("--gpus", type=click.IntRange(min=1), help="GPUs of all machines.  [default: the settings' processes]")
@click.option("--gpu", help="l4, a10, l40s, a100-40, a100-80, h100, h200, b200, mi300x, or here.  [default: h100]")
@click.option("--per-node", type=click.IntRange(min=1), help="GPUs a machine.  [default: as usual for the GPU]")
@click.option("--objective", type=click.Choice(["cloc", "clip"]), default="cloc", show_default=True)
@click.option("--steps", type=_Count(), help="Steps, instead of the settings'.")
@click.option("--samples", type=_Count(), help="Samples, instead of steps: 13B.")
@click.option("--measure", is_flag=True, help="Measure this machine first (less than a minute).")
@click.option(
    "--measured", multiple=True, metavar="PATH", help="What ran: a model, a labelling report, a plan; repeat."
)
@click.option("--assume", multiple=True, metavar="NAME=VALUE", help="Correct a figure that the plan rests on; repeat.")
@click.option("--json", "as_json", is_flag=True, help="The plan as JSON.")
def plan(
    images: int | None,
    data: str,
    model: str | None,
    params: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
    **asked: Any,
) -> None:
    """Estimate memory, time, storage, network and labelling of a training, and say which limit binds.

    \b
    cloc plan --images 2e9 --model b16 --gpus 64
    cloc plan --images 300M --model l14 --gpus 128 --gpu a100-80 --samples 13B -S train.strategy=fsdp2
    cloc plan --data data/train --params params.yaml --gpu here --measure
    """
    if params and model:
        raise ConfigError("give --params or --model, not both")
    if asked["steps"] and asked["samples"]:
        raise ConfigError("give --steps or --samples, not both")
    config = resolve(params, None if params else model or "b16", overrides)
    found = _estimate(config, images=images, data=data, **asked)
    from cloc.training.plan import report

    if as_json:
        click.echo(json.dumps(report.as_json(found), indent=1))
        return
    from rich.console import Console

    report.show(found, Console(width=None if sys.stdout.isatty() else 140))


def _estimate(config: Config, *, images: int | None, data: str, **asked: Any) -> Any:
    from cloc.training.plan import HERE, Request, estimate
    from cloc.training.plan.inputs import data_figures, measured_machine
    from cloc.training.plan.measured import read_measured

    here = asked["gpu"] == HERE or (asked["measure"] and not asked["gpu"])
    known, counted = data_figures(config, data) if data else ({}, None)
    if not images and counted is None:
        raise ConfigError("say how large the data set is: --images 2e9, or --data for one that is there")
    machine = measured_machine(config, objective=asked["objective"]) if here or asked["measure"] else None
    known |= read_measured(asked["measured"], here=here)
    if machine and not here:
        known |= {name: machine.figures[name] for name in ("decode", "storage_read")}
    request = Request(
        images=images or (counted.images if counted else 0),
        shards=counted.shards if counted and not images else 0,
        gpus=asked["gpus"] or 0,
        gpu=HERE if here else asked["gpu"] or "h100",
        per_node=asked["per_node"] or 0,
        objective=asked["objective"],
        steps=asked["steps"] or 0,
        samples=asked["samples"] or 0,
        assume=asked["assume"],
        measured=known,
        machine=machine,
    )
    return estimate(config, request)
