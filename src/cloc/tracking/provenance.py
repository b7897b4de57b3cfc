"""Which run a stage belongs to, and what every run says of where it comes from."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from cloc import __version__

KEY = "CLOC_RUN_KEY"
REVISION = "CLOC_REVISION"
"""Variable that names the git commit where there is no checkout: in the images of the tasks."""
_KEY_TAG = "cloc.run_key"


def common_tags() -> dict[str, str]:
    """Tags of every run: versions, host, user, git commit and where it was started from."""
    tags = {
        "cloc.version": __version__,
        "python": platform.python_version(),
        "host": platform.node(),
        "mlflow.user": os.environ.get("USER", ""),
    }
    commit = git("rev-parse", "HEAD")
    if commit:
        tags["git.dirty"] = str(bool(git("status", "--porcelain", "--untracked-files=no"))).lower()
    if commit := commit or os.environ.get(REVISION, ""):
        tags["mlflow.source.git.commit"] = commit
    for name in ("CLOC_KFP_RUN_URL", "DVC_EXP_NAME"):
        if os.environ.get(name):
            tags[name.lower()] = os.environ[name]
    return tags


def git(*arguments: str, folder: Path | None = None) -> str:
    """What git says of the checkout of a folder (of the working directory without one); "" where there is none."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""  # not a checkout, or no git: then there is no commit to record
    return done.stdout.strip() if done.returncode == 0 else ""


def parent_run(client: Any, experiment: str) -> str | None:
    """Id of the pipeline's run that a stage belongs to, by the order told in `cloc.tracking`; None for none."""
    given = os.environ.get("MLFLOW_RUN_ID")
    if given:
        return given
    key = os.environ.get(KEY) or _dvc_key()
    if not key:
        return None
    # Tasks of a pipeline know the key, and not always the experiment.
    everywhere = [item.experiment_id for item in client.search_experiments()]
    found = client.search_runs(everywhere, filter_string=f"tags.`{_KEY_TAG}` = '{key}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    name = f"dvc-{os.environ['DVC_EXP_NAME']}" if os.environ.get("DVC_EXP_NAME") else key
    tags = {**common_tags(), _KEY_TAG: key, "cloc.kind": "pipeline"}
    created = client.create_run(experiment, run_name=name, tags=tags)
    if os.environ.get(KEY) is None:  # nobody is told when `dvc repro` ends; a pipeline's last task says how it did
        client.set_terminated(created.info.run_id, "FINISHED")
    return str(created.info.run_id)


def _dvc_key() -> str | None:
    """A key shared by the stages of one `dvc repro`: its process and when that began."""
    if "DVC_ROOT" not in os.environ:
        return None
    import psutil

    for process in psutil.Process().parents():
        if any(Path(part).name == "dvc" for part in process.cmdline()[:3]):
            return f"dvc-{process.pid}-{int(process.create_time())}"
    return None
