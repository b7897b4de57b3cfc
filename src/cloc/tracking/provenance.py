"""Which run a stage belongs to, and what every run says of where it comes from."""

import itertools
import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml

from cloc import __version__

KEY = "CLOC_RUN_KEY"
REVISION = "CLOC_REVISION"
"""Variable that names the git commit where there is no checkout: in the images of the tasks."""
KFP_URL = "CLOC_KFP_RUN_URL"
"""Variable that names the page of the pipeline's run; without it the page is told from `KF_PIPELINES_UI_ENDPOINT`."""
_KFP_UI = "KF_PIPELINES_UI_ENDPOINT"
_DVC = {"DVC_EXP_NAME": "dvc.experiment", "DVC_EXP_BASELINE_REV": "dvc.baseline", "DVC_STAGE": "dvc.stage"}
# What a run is made with, where it is installed: the tag is the distribution's name.
_VERSIONS = ("torch", "transformers", "mlflow")


def common_tags() -> dict[str, str]:
    """Tags of every run: versions, host, user, git, and who started it (the command line, DVC or KFP)."""
    tags = {
        "cloc.version": __version__,
        "python": platform.python_version(),
        "host": platform.node(),
        "mlflow.user": os.environ.get("USER", ""),
        **_versions(),
        **_git_tags(),
        **started_by(),
    }
    return {name: value for name, value in tags.items() if value}


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _git_tags() -> dict[str, str]:
    commit = git("rev-parse", "HEAD")
    if not commit:
        return {"mlflow.source.git.commit": os.environ.get(REVISION, "")}
    return {
        "mlflow.source.git.commit": commit,
        "mlflow.source.git.branch": git("rev-parse", "--abbrev-ref", "HEAD").replace("HEAD", ""),
        "git.dirty": str(bool(git("status", "--porcelain", "--untracked-files=no"))).lower(),
    }


def started_by() -> dict[str, str]:
    """Who started this process, as tags: `cloc.started_by` is "kfp", "dvc" or "cli"; with what that one calls it.

    MLflow's pages show `mlflow.source.name` in the column "Source".
    """
    tags = {"cloc.started_by": "cli", "mlflow.source.type": "LOCAL", "mlflow.source.name": _command()}
    if "KFP_POD_NAME" in os.environ or KFP_URL in os.environ:
        run = os.environ.get(KEY, "")
        page = os.environ.get(_KFP_UI, "")
        page = f"{page.rstrip('/')}/#/runs/details/{run}" if page and run else ""
        told = {"kfp.run_id": run, "kfp.run_url": os.environ.get(KFP_URL) or page}
        return tags | told | {"cloc.started_by": "kfp", "mlflow.source.type": "JOB", "mlflow.source.name": "Kubeflow"}
    if "DVC_ROOT" in os.environ:
        told = {tag: os.environ.get(name, "") for name, tag in _DVC.items()}
        return tags | told | {"cloc.started_by": "dvc", "mlflow.source.name": "dvc", "dvc.data_md5": _data_md5()}
    return tags


def _command() -> str:
    """The command, "cloc pretrain", or the name of the program; tasks of the local runner belong to `cloc run`."""
    program = Path(sys.argv[0])
    words = [program.name, *itertools.takewhile(str.isidentifier, sys.argv[1:3])]
    if "kfp" in program.parts:
        return "cloc run"
    return " ".join(words) if program.name == "cloc" else program.name


def _data_md5() -> str:
    """The hash that `data.dvc` has of the data."""
    path = Path(os.environ["DVC_ROOT"]) / "data.dvc"
    try:
        outs = yaml.safe_load(path.read_text())["outs"]
        return str(outs[0].get("md5", ""))
    except (OSError, yaml.YAMLError, LookupError, TypeError, AttributeError):
        return ""  # a set that DVC does not track so


def git(*arguments: str, folder: Path | None = None) -> str:
    """What git says of the checkout of a folder (of the working directory without one); "" where there is none."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""  # not a checkout, or no git: then there is no commit to record
    return done.stdout.strip() if done.returncode == 0 else ""
