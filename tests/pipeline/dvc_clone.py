"""Repositories with this one's DVC files and code at toy size, in temporary folders, and commands run in them."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cloc.config import dump
from tests.pipeline import toy

ROOT = Path(__file__).parents[2]
TRACKED = ("dvc.yaml", "data.dvc", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore")
_RAN = re.compile(r"^Running stage '([^']+)':$", re.MULTILINE)


@cache
def stages() -> dict[str, Any]:
    """The stages of dvc.yaml, those of a `foreach` once."""
    found = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    return {name: stage.get("do", stage) for name, stage in found.items()}


def environment(folder: Path, **more: str) -> dict[str, str]:
    """As from an activated environment; records and locks of DVC and MLflow lie beside the clone."""
    kept = {name: value for name, value in os.environ.items() if name not in ("MLFLOW_RUN_ID", "PYTHONPATH")}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(folder.parent / "dvc-site"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder.parent}/mlflow.db",
        "GIT_AUTHOR_NAME": "tests",
        "GIT_AUTHOR_EMAIL": "tests@localhost",
        "GIT_COMMITTER_NAME": "tests",
        "GIT_COMMITTER_EMAIL": "tests@localhost",
        **more,
    }


def attempt(folder: Path, *command: str, **variables: str) -> tuple[int, str]:
    """Runs a command in a clone; its exit code and what it printed."""
    done = subprocess.run(
        command, cwd=folder, env=environment(folder, **variables), capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def run(folder: Path, *command: str, **variables: str) -> str:
    """Runs a command in a clone that has to succeed; returns what it printed."""
    code, printed = attempt(folder, *command, **variables)
    assert code == 0, f"{' '.join(command)}: exit code {code}\n{printed[-6000:]}"
    return printed


def ran(printed: str) -> list[str]:
    """The stages that `dvc repro` ran, or would run, in order."""
    return _RAN.findall(printed)


def commit(folder: Path) -> None:
    """Commits all that git sees."""
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-qm", "state")


def write_params(folder: Path, **changes: str) -> None:
    """Settings of toy size, with changes as `section__key="value"`."""
    (folder / "params.yaml").write_text(dump(toy.config(**changes)))


def edit_params(folder: Path, edit: Mapping[str, str]) -> None:
    """Replaces lines of params.yaml as a person would; each must stand there once."""
    text = (folder / "params.yaml").read_text()
    for old, new in edit.items():
        assert text.count(f"\n{old}\n") == 1, old
        text = text.replace(f"\n{old}\n", f"\n{new}\n" if new else "\n")
    (folder / "params.yaml").write_text(text)


def new_repository(folder: Path) -> Path:
    """A repository in which nothing was run."""
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copytree(ROOT / ".dvc/plots", folder / ".dvc/plots")
    for name in TRACKED:
        shutil.copyfile(ROOT / name, folder / name)
    write_params(folder)
    run(folder, "git", "init", "-q")
    commit(folder)
    return folder


def clone(repository: Path, name: str) -> Path:
    """What git holds of a repository: neither data nor results."""
    run(repository.parent, "git", "clone", "-q", str(repository), name)
    return repository.parent / name


def copy(source: Path, name: str) -> Path:
    """A clone as it stands, with its data, results and cache."""
    folder = source.parent / name
    shutil.copytree(source, folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "tmp"))
    return folder
