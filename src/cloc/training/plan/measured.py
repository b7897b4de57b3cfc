"""Figures out of what has run: trainings, labelling reports, and earlier plans that measured a machine."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from cloc.config import Config, parse
from cloc.config.load import read_yaml
from cloc.errors import ConfigError
from cloc.model import factory
from cloc.stage import CONFIG_FILE, RESULT_FILE
from cloc.training.flops import Load, costs_of
from cloc.training.jobfile import METRICS_FILE, SUMMARY_FILE
from cloc.training.plan.figures import Figure, Origin
from cloc.training.task import Objective

_LABELS = {"captioning": ("caption_rate", "captioned"), "grounding": ("ground_rate", "grounded")}
# Figures of a measured machine that hold wherever the same processors and disks are.
_ELSEWHERE = ("decode", "storage_read", "image_bytes")


@dataclass(frozen=True)
class _Run:
    """A training that ran: its folder, settings, summary, and records but the first, which warmed up."""

    folder: Path
    config: Config
    summary: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]

    def middle(self, name: str) -> float | None:
        """Median of a figure over the records; None where they have none."""
        found = [row[name] for row in self.rows if name in row]
        return median(found) if found else None


def read_measured(paths: Sequence[str], *, here: bool) -> dict[str, Figure]:
    """Figures of folders of trainings and of labelling reports, and of files that `cloc plan --json` wrote.

    Args:
        paths: as given; later ones win.
        here: whether the plan is for this machine: then processors' figures count, too.

    Raises:
        ConfigError: none of these, or measured on processors where the plan is for GPUs.
    """
    found = dict[str, Figure]()
    for text in paths:
        path = Path(text)
        if path.is_file():
            found |= _earlier_plan(path, here=here)
        elif (path / SUMMARY_FILE).is_file():
            found |= _training(_run(path), here=here)
        elif (path / RESULT_FILE).is_file():
            found |= _labelling(path)
        else:
            raise ConfigError(
                f"--measured {text}: neither a trained model ({SUMMARY_FILE}), nor a labelling report ({RESULT_FILE}), "
                "nor a file that `cloc plan --json` wrote"
            )
    return found


def _run(folder: Path) -> _Run:
    try:
        config = parse(read_yaml((folder / CONFIG_FILE).read_text(), source=str(folder)), source=str(folder))
        summary = json.loads((folder / SUMMARY_FILE).read_text())
        rows = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"--measured {folder}: {error}") from None
    if len(rows) < 2:
        raise ConfigError(f"--measured {folder}: {METRICS_FILE} has {len(rows)} records; a rate needs two")
    return _Run(folder, config, summary, rows[1:])


def _training(run: _Run, *, here: bool) -> dict[str, Figure]:
    """The share of the peak that its steps reached while they did not wait for data."""
    mfu = run.middle("speed/mfu")
    if mfu is None:
        raise ConfigError(
            f"--measured {run.folder}: {METRICS_FILE} tells no mfu: trained by an earlier release, or in too few steps"
        )
    on_gpu = run.middle("system/gpu_memory_gib") is not None
    if not on_gpu and not here:
        raise ConfigError(
            f"--measured {run.folder}: trained on processors, which tells nothing of a GPU; plan with --gpu here"
        )
    waited = run.middle("speed/data_wait_share") or 0.0
    share = mfu * _recomputing(run) / max(1 - waited, 0.01)
    source = f"{run.folder}: mfu {mfu:.3f}, {run.middle('speed/images_per_second') or 0:,.0f} images/s"
    return {"utilisation": Figure(share, "", "share of the peak that a step reaches", source, Origin.MEASURED)}


def _recomputing(run: _Run) -> float:
    """FLOPs that its steps did over those of the model."""
    config, ranks = run.config, int(run.summary["processes"])
    objective: Objective = "clip" if run.summary["objective"] == "clip" else "cloc"
    shape = factory.architecture(config.model)
    batch, length = config.train.batch_size, shape.text_config.max_position_embeddings
    load = Load(batch, shape.vision_config.image_size, batch, batch * length, batch * length**2, batch, ranks)
    flops = costs_of(config, objective=objective).step(load)
    return flops.hardware / flops.total


def _labelling(folder: Path) -> dict[str, Figure]:
    result = json.loads((folder / RESULT_FILE).read_text())
    if result.get("stage") not in _LABELS:
        raise ConfigError(f"--measured {folder}: stage {result.get('stage')!r} labels no images")
    name, done = _LABELS[result["stage"]]
    rate = result["metrics"].get("speed/images_per_second")
    if not rate:
        raise ConfigError(f"--measured {folder}: nothing was labelled in that run, so that it has no images_per_second")
    config = parse(read_yaml((folder / CONFIG_FILE).read_text(), source=str(folder)), source=str(folder))
    processes = getattr(config, result["stage"]).processes
    source = f"{folder}: {rate:,.1f} images/s by {processes} processes"
    return {name: Figure(rate / processes, "images/s", f"{done} by a process", source, Origin.MEASURED)}


def _earlier_plan(path: Path, *, here: bool) -> dict[str, Figure]:
    try:
        figures = json.loads(path.read_text())["figures"]
        measured = {
            name: Figure(**{**item, "origin": Origin.MEASURED, "source": f"{path}: {item['source']}"})
            for name, item in figures.items()
            if item["origin"] == Origin.MEASURED and (here or name in _ELSEWHERE)
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--measured {path}: not what `cloc plan --json` writes ({error})") from None
    if not measured:
        raise ConfigError(f"--measured {path}: that plan measured nothing that holds here; run it with --measure")
    return measured
