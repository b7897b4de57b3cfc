"""What runs are called, so that they can be told apart.

    demo 2026-11-30 14:02                               a pipeline on this machine: its folder and when
    urban-tarp: train.learning_rate=0.0005              `dvc exp run`: the experiment, and what it changes
    dvc repro 2026-11-30 14:02: train.steps=900         `dvc repro`: when, and what differs from the commit
    pretraining clip_equal_steps                        a stage: its name, and what it made
    CLOC of demo 2026-11-30 14:02                       a model that was measured: its name, and in which pipeline

`MLFLOW_RUN_NAME` names the run of a pipeline, and that of a stage that belongs to none.
"""

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from cloc.config.load import flatten
from cloc.tracking.provenance import git

NAME_VARIABLE = "MLFLOW_RUN_NAME"
_PARAMS = "params.yaml"
_CHANGES, _VALUE, _LIMIT = 3, 40, 200  # how many are named, characters of each, and of a name


def stage_title(stage: str, *, made: str, fields: frozenset[str], title: str, worker: str = "") -> str:
    """A stage's run: "pretraining cloc", "captioning 2/8".

    Args:
        stage: its name.
        made: path of its output; its last part tells runs apart where a person chose it.
        fields: names of outputs, which is what a pipeline's runner calls folders.
        title: what the stage calls the work; for where `made` tells nothing.
        worker: "2/8" of a share of the work.
    """
    folder = Path(made).name if made else ""
    told = title if not folder or folder in fields or folder == stage else folder
    return " ".join(part for part in (stage, told, worker) if part)[:_LIMIT]


def model_title(model: str, *, pipeline: str) -> str:
    """A model's run, which stands beside those of other pipelines; `pipeline` is what the run above is called."""
    return f"{model} of {pipeline}"[:_LIMIT] if pipeline else model


def pipeline_title(*, started: datetime) -> str:
    """The run of a pipeline, as each of its stages knows it: what the environment says, or the experiment of DVC and
    what it changes; "" where its runner has told nobody.

    Args:
        started: when DVC did, so that all stages say the same.
    """
    if given := os.environ.get(NAME_VARIABLE):
        return given
    root = os.environ.get("DVC_ROOT")
    if root is None:
        return ""
    experiment = os.environ.get("DVC_EXP_NAME") or f"dvc repro {started:%Y-%m-%d %H:%M}"
    changes = changed_settings(Path(root))
    named = [f"{name}={str(value)[:_VALUE]}" for name, value in list(changes.items())[:_CHANGES]]
    more = [f"and {len(changes) - _CHANGES} more"] if len(changes) > _CHANGES else []
    return ": ".join(part for part in (experiment, ", ".join([*named, *more])) if part)[:_LIMIT]


def changed_settings(root: Path) -> dict[str, Any]:
    """Settings of `params.yaml` that differ from the commit's; empty without a checkout or where either is unreadable.

    Args:
        root: of the repository.
    """
    try:
        committed = _flat(git("show", f"HEAD:./{_PARAMS}", folder=root))
        present = _flat((root / _PARAMS).read_text()) if committed else {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return {name: value for name, value in present.items() if committed.get(name) != value}


def _flat(text: str) -> dict[str, Any]:
    body = yaml.safe_load(text)
    return flatten(body) if isinstance(body, Mapping) else {}
