"""The pipeline's run that a stage belongs to, as the environment tells it; nothing is asked of the store."""

import os
from pathlib import Path

from cloc.tracking.identity import SHARED_KEY_TAG, Identity, Parent
from cloc.tracking.provenance import KEY, common_tags
from cloc.tracking.titles import NAME_VARIABLE, pipeline_title


def parent_of_here() -> Parent | None:
    """The pipeline's run, by the order told in `cloc.tracking`; None for none."""
    given = os.environ.get("MLFLOW_RUN_ID")
    if given:
        return Parent(run_id=given, name=os.environ.get(NAME_VARIABLE, ""))
    key = os.environ.get(KEY) or _dvc_key()
    if not key:
        return None
    return Parent(
        key=key,
        name=pipeline_title(key),
        tags={**common_tags(), "cloc.kind": "pipeline"},
        # Nobody is told when `dvc repro` ends; a pipeline's last task says how it did.
        ended=KEY not in os.environ,
    )


def as_identity(parent: Parent, *, experiment: str) -> Identity:
    """The pipeline's run, to record in it."""
    if parent.run_id:
        return Identity(experiment, run_id=parent.run_id)
    return Identity(experiment, key=parent.key, key_tag=SHARED_KEY_TAG, name=parent.name, tags=parent.tags)


def _dvc_key() -> str | None:
    """A key shared by the stages of one `dvc repro`: its process and when that began."""
    if "DVC_ROOT" not in os.environ:
        return None
    import psutil

    for process in psutil.Process().parents():
        if any(Path(part).name == "dvc" for part in process.cmdline()[:3]):
            return f"dvc-{process.pid}-{int(process.create_time())}"
    return None
