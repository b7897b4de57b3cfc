"""The command line as a user meets it: help, settings, mistakes as one line with an exit code."""

import subprocess
import sys
from pathlib import Path

import pytest

from cloc.config import dump, load_preset

CLOC = str(Path(sys.executable).with_name("cloc"))


def cloc(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([CLOC, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text(dump(load_preset("demo")))
    return tmp_path


@pytest.mark.parametrize(
    "verb",
    [
        "",
        "config",
        "data ingest",
        "caption",
        "ground",
        "validate",
        "pretrain",
        "evaluate",
        "register",
        "tune",
        "ablate",
    ],
)
def test_help_is_there_for_every_verb(verb: str, tmp_path: Path) -> None:
    done = cloc(*verb.split(), "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: cloc")


def test_settings_are_shown_explained_and_written(folder: Path) -> None:
    assert "steps: 7" in cloc("config", "show", "-S", "train.steps=7", cwd=folder).stdout
    assert "Peak learning rate." in cloc("config", "explain", "train.learning_rate", cwd=folder).stdout
    done = cloc("config", "init", "--preset", "l14", "--out", "l14.yaml", cwd=folder)
    assert done.returncode == 0
    assert cloc("config", "show", "--params", "l14.yaml", cwd=folder).stdout == dump(load_preset("l14"))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            ("  warmup_steps: 40\n", ""),
            "error: params.yaml: missing key train.warmup_steps (default 2000); add it to the file",
        ),
        (
            ("  warmup_steps: 40\n", "  warmup_stepz: 40\n"),
            "error: params.yaml: unknown key train.warmup_stepz (did you mean train.warmup_steps?)",
        ),
        (
            ("  warmup_steps: 40\n", "  warmup_steps: many\n"),
            "error: params.yaml: train.warmup_steps: input should be a valid integer, got 'many'",
        ),
    ],
)
def test_a_mistake_in_the_settings_is_one_line(folder: Path, change: tuple[str, str], line: str) -> None:
    path = folder / "params.yaml"
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change, 1))
    done = cloc("caption", "--data", "data", "--out", "work", cwd=folder)
    assert done.returncode == 2
    assert done.stderr.strip() == line


def test_data_that_are_not_there_are_one_line(folder: Path) -> None:
    done = cloc("caption", "--data", "nowhere", "--out", "work", cwd=folder)
    assert done.returncode == 3
    assert done.stderr.strip().splitlines()[-1].startswith("error: nowhere: neither a data set nor a collection")
    assert "Traceback" not in done.stderr + done.stdout


def test_settings_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    done = cloc("caption", "--data", "data", "--out", "work", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: there is no params.yaml here; name one with --params, or take a --preset"
