"""An estimate for programs (JSON) and for people (tables)."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from cloc.training.plan import HERE, Plan
from cloc.training.plan.figures import Figure, Origin
from cloc.training.plan.hardware import GPUS

_GIB = 1 << 30


def as_json(plan: Plan) -> dict[str, Any]:
    """All numbers of a plan, SI units; infinite rates are null."""
    speed, held = plan.speed, plan.memory
    return {
        "model": asdict(plan.sizes),
        "gpus": {"number": plan.cluster.gpus, "nodes": plan.cluster.nodes, "kind": gpu_name(plan)},
        "memory": {
            "parts": dict(held.parts),
            "total": held.total,
            "limit": held.limit,
            "bytes_an_image": held.image,
            "micro_batch": held.micro,
            "largest_micro_batch": held.largest,
            "fits": held.fits,
            "variants": [
                {
                    "strategy": variant.strategy,
                    "gradient_checkpointing": variant.checkpointing,
                    "total": variant.memory.total,
                    "largest_micro_batch": variant.memory.largest,
                }
                for variant in plan.variants
            ],
        },
        "speed": {
            "steps": speed.steps,
            "batch_size": plan.config.train.batch_size,
            "micro_batch": plan.config.train.micro_batch,
            "samples": speed.steps * plan.config.train.batch_size,
            "epochs": plan.epochs,
            "step_seconds": speed.step_seconds,
            "hours": speed.hours,
            "gpu_hours": speed.hours * plan.cluster.gpus,
            "images_per_second": speed.images_per_second,
            "images_per_second_a_gpu": speed.images_per_second / plan.cluster.gpus,
            "mfu": speed.mfu,
            "flops_a_step": {**asdict(speed.flops), "total": speed.flops.total, "hardware": speed.flops.hardware},
            "bytes_sent_a_step_and_gpu": asdict(speed.traffic),
            "limits": [asdict(limit) for limit in speed.limits],
        },
        "loader": dict(plan.loader),
        "storage": {**asdict(plan.kept), "total": plan.kept.total},
        "labelling": {
            stage: {"images_per_second_a_gpu": None if math.isinf(rate) else rate, "gpu_hours": plan.label_hours[stage]}
            for stage, rate in plan.labels.items()
        },
        "binding": plan.binding,
        "remarks": list(plan.remarks),
        "figures": {name: asdict(figure) for name, figure in plan.figures.items()},
    }


def gpu_name(plan: Plan) -> str:
    """What it runs on, for people."""
    if plan.request.gpu != HERE:
        return GPUS[plan.request.gpu].name
    return plan.request.machine.name if plan.request.machine else HERE


def show(plan: Plan, console: Console) -> None:
    """Prints a plan."""
    console.print(f"[bold]{_title(plan)}[/]", highlight=False)
    for heading, rows in (
        ("Training", _training(plan)),
        (f"Memory of a GPU ({_gib(plan.memory.limit)} to use)", _memory(plan)),
        ("Loader and network", _feeding(plan)),
        ("Storage and labels", _keeping(plan)),
    ):
        _section(console, heading, list(rows))
    _ways(console, plan)
    _limits(console, plan)
    _figures(console, plan)
    console.print("\n[bold]What to do[/]")
    for remark in plan.remarks:
        console.print(f"- {remark}", highlight=False)


def _title(plan: Plan) -> str:
    sizes, cluster = plan.sizes, plan.cluster
    image = f"ViT {sizes.vision.width}x{sizes.vision.layers}/{sizes.patch_size} at {sizes.image_size} px"
    return (
        f"{image}, {sizes.parameters / 1e6:,.1f} M parameters ({sizes.clip / 1e6:,.1f} M without the region parts), "
        f"{plan.request.objective} on {cluster.gpus} x {gpu_name(plan)} in {_machines(cluster.nodes)}"
    )


def _machines(number: int) -> str:
    return "one machine" if number == 1 else f"{number} machines"


def _training(plan: Plan) -> Iterator[tuple[str, str, str]]:
    speed, gpus = plan.speed, plan.cluster.gpus
    train = plan.config.train
    samples = speed.steps * train.batch_size
    yield "steps", f"{speed.steps:,}", f"of {train.batch_size:,} images: {_count(samples)} samples"
    yield "epochs", f"{plan.epochs:.3g}", f"of {_count(plan.request.images)} images"
    yield "a step", f"{speed.step_seconds:.3g} s", f"{speed.flops.total / 1e15:,.3g} PFLOP, MFU {speed.mfu:.0%}"
    yield "speed", f"{speed.images_per_second:,.0f} images/s", f"{speed.images_per_second / gpus:,.0f} a GPU"
    yield "time", _time(speed.hours), f"{speed.hours * gpus:,.0f} GPU-hours"


def _memory(plan: Plan) -> Iterator[tuple[str, str, str]]:
    held = plan.memory
    notes = {"activations": f"{held.micro:,} images at once, {held.image / 2**20:,.0f} MiB each"}
    for name, value in held.parts.items():
        yield name, _gib(value), notes.get(name, "")
    largest = f"largest micro-batch that fits: {held.largest:,}" if held.largest else "not one image fits"
    yield "all", _gib(held.total), largest


def _feeding(plan: Plan) -> Iterator[tuple[str, str, str]]:
    loader, traffic = plan.loader, plan.speed.traffic
    rate, cores = loader["images_per_second_a_node"], loader["cores_a_gpu"]
    yield "decoding", f"{cores:.1f} cores a GPU", f"{rate:,.0f} images/s a machine"
    yield "reading", f"{loader['megabytes_per_second_a_node']:,.0f} MB/s", "a machine"
    if plan.cluster.gpus > 1:
        yield "gradients", _bytes(traffic.gradients), "sent by a GPU a step, behind the backward pass"
        yield "embeddings", _bytes(traffic.embeddings), "of all processes, a step, with their gradients"


def _keeping(plan: Plan) -> Iterator[tuple[str, str, str]]:
    kept, hours = plan.kept, plan.label_hours
    yield "images", _bytes(kept.images), f"{kept.shards:,} shards, {kept.objects:,} objects"
    yield "captions", _bytes(kept.captions), _cost("captioning", plan.labels["caption"], hours["caption"])
    yield "regions", _bytes(kept.regions), _cost("grounding", plan.labels["ground"], hours["ground"])
    yield "checkpoints", _bytes(kept.checkpoint * kept.checkpoints), f"{kept.checkpoints} of {_bytes(kept.checkpoint)}"
    yield "all", _bytes(kept.total), ""


def _cost(what: str, rate: float, hours: float) -> str:
    return "labelled by people" if math.isinf(rate) else f"{what}: {hours:,.0f} GPU-hours at {rate:,.3g} images/s a GPU"


def _section(console: Console, heading: str, rows: list[tuple[str, str, str]]) -> None:
    console.print(f"\n[bold]{heading}[/]", highlight=False)
    table = _table()
    for _ in range(3):
        table.add_column()
    table.columns[0].min_width, table.columns[1].min_width = 26, 16
    table.columns[1].justify = "right"
    for row in rows:
        table.add_row(*row)
    console.print(table, highlight=False)


def _table(*, header: bool = False) -> Table:
    return Table(box=box.SIMPLE_HEAD if header else None, show_header=header, padding=(0, 1), pad_edge=True)


def _ways(console: Console, plan: Plan) -> None:
    console.print("\n[bold]Ways to hold the whole part of a batch[/]")
    table = _table(header=True)
    for name in ("strategy", "checkpointing", "needs", "largest micro-batch", ""):
        table.add_column(name, justify="left" if name in ("strategy", "checkpointing", "") else "right")
    for variant in plan.variants:
        held = variant.memory
        verdict = "fits" if held.fits else "does not fit"
        mark = f"{verdict}, the settings'" if variant.chosen else verdict
        layers = "on" if variant.checkpointing else "off"
        table.add_row(variant.strategy, layers, _gib(held.total), f"{held.largest:,}", mark)
    console.print(table, highlight=False)


def _limits(console: Console, plan: Plan) -> None:
    console.print("\n[bold]What each limit would allow[/]")
    table = _table(header=True)
    for name in ("limit", "images/s", "by", ""):
        table.add_column(name, justify="right" if name == "images/s" else "left")
    for number, limit in enumerate(plan.speed.limits):
        mark = "binds" if not number else ""
        table.add_row(limit.name, f"{limit.images_per_second:,.0f}", limit.detail, mark)
    console.print(table, highlight=False)


def _figures(console: Console, plan: Plan) -> None:
    console.print("\n[bold]What this rests on[/] (correct it by --assume NAME=VALUE, --measure or --measured)")
    table = _table(header=True)
    for name in ("figure", "value", "", "from"):
        table.add_column(name, justify="right" if name == "value" else "left", overflow="fold")
    order = list(Origin)
    items = sorted(plan.figures.items(), key=lambda item: (-order.index(item[1].origin), item[0]))
    for name, figure in items:
        table.add_row(name, _value(figure), figure.origin.value, f"{figure.what}: {figure.source}")
    console.print(table, highlight=False)


def _value(figure: Figure) -> str:
    return (
        f"{figure.value:,.4g} {figure.unit}".rstrip() if figure.value < 10_000 else f"{figure.value:,.0f} {figure.unit}"
    )


def _gib(value: float) -> str:
    return f"{value / _GIB:,.2f} GiB"


def _bytes(value: float) -> str:
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if value >= size:
            return f"{value / size:,.3g} {unit}" if value < 1000 * size else f"{value / size:,.0f} {unit}"
    return f"{value / 1e3:,.0f} kB"


def _count(value: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:,.4g} {unit}"
    return f"{value:,.0f}"


def _time(hours: float) -> str:
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
