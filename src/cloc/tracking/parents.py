"""The pipeline's run that a stage belongs to, as the environment tells it; nothing is asked of the store."""

import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cloc.tracking.identity import SHARED_KEY_TAG, Identity, Parent
from cloc.tracking.provenance import KEY, common_tags
from cloc.tracking.titles import NAME_VARIABLE, pipeline_title

if TYPE_CHECKING:
    import psutil


def parent_of_here() -> Parent | None:
    """The pipeline's run, by the order told in `cloc.tracking`; None for none."""
    given = os.environ.get("MLFLOW_RUN_ID")
    if given:
        return Parent(run_id=given, name=os.environ.get(NAME_VARIABLE, ""))
    key, started = os.environ.get(KEY), datetime.now()
    if not key:
        process = _dvc_process()
        if process is None:
            return None
        began = process.create_time()
        key, started = f"dvc-{process.pid}-{int(began)}", datetime.fromtimestamp(began)
    return Parent(
        key=key,
        name=pipeline_title(started=started),
        tags={**common_tags(), "cloc.kind": "pipeline"},
        # Nobody is told when `dvc repro` ends; a pipeline's last task says how it did.
        ended=KEY not in os.environ,
    )


def as_identity(parent: Parent, *, experiment: str) -> Identity:
    """The pipeline's run, to record in it."""
    if parent.run_id:
        return Identity(experiment, run_id=parent.run_id)
    return Identity(experiment, key=parent.key, key_tag=SHARED_KEY_TAG, name=parent.name, tags=parent.tags)


def _dvc_process() -> "psutil.Process | None":
    """The `dvc repro` that runs this stage: its id and when it began tell its stages from those of others."""
    if "DVC_ROOT" not in os.environ:
        return None
    import psutil

    above = psutil.Process().parents()
    return next((one for one in above if any(Path(part).name == "dvc" for part in one.cmdline()[:3])), None)
