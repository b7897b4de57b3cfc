"""The command line as a user meets it: help, settings, mistakes as one line with an exit code."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cloc.cli import cloc as cli
from cloc.config import dump, load_preset

CLOC = str(Path(sys.executable).with_name("cloc"))


def cloc(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([CLOC, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text(dump(load_preset("demo")))
    return tmp_path


def _commands(command: click.Command, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    yield command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _commands(inner, click.Context(inner, parent=context, info_name=name))


_COMMANDS = list(_commands(cli, click.Context(cli, info_name="cloc", terminal_width=80)))


@pytest.mark.parametrize(
    ("command", "context"), _COMMANDS, ids=[context.command_path.replace(" ", "-") for _, context in _COMMANDS]
)
def test_help_fits_a_screen_and_has_an_example(command: click.Command, context: click.Context) -> None:
    lines = command.get_help(context).splitlines()
    assert lines[0].startswith(f"Usage: {context.command_path}")
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 110
    examples = [line.split() for line in lines if line.strip().startswith(("cloc ", 'eval "$(cloc '))]
    assert examples
    cut = [line for line in lines[1:] if line.endswith("...")]
    assert not cut, "what a list says of a verb is cut off"


def test_the_list_of_verbs_imports_none_of_them(tmp_path: Path) -> None:
    code = "import sys, cloc.cli\ntry: cloc.cli.main()\nexcept SystemExit: pass\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    listed, modules = done.stdout.rsplit("\n", 2)[0], set(done.stdout.splitlines()[-1].split())
    assert "pretrain" in listed
    assert not modules & {"pydantic", "numpy", "torch", "mlflow", "cloc.cli.stages"}


def test_a_verb_that_is_none_is_one_line(tmp_path: Path) -> None:
    done = cloc("regester", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "Error: no such verb 'regester'; did you mean register?"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_what_the_shell_asks(shell: str, tmp_path: Path) -> None:
    assert f"_CLOC_COMPLETE={shell}_complete" in cloc("completion", shell, cwd=tmp_path).stdout
    asked = {"_CLOC_COMPLETE": "bash_complete", "COMP_WORDS": "cloc data in", "COMP_CWORD": "2"}
    done = subprocess.run([CLOC], env={**os.environ, **asked}, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["plain,ingest"]


def test_settings_are_shown_explained_and_written(folder: Path) -> None:
    assert "steps: 7" in cloc("config", "show", "-S", "train.steps=7", cwd=folder).stdout
    assert "Peak learning rate." in cloc("config", "explain", "train.learning_rate", cwd=folder).stdout
    done = cloc("config", "init", "--preset", "l14", "-S", "train.steps=7", "--out", "l14.yaml", cwd=folder)
    assert done.returncode == 0
    written = cloc("config", "show", "--params", "l14.yaml", cwd=folder).stdout
    assert written == cloc("config", "show", "--preset", "l14", "-S", "train.steps=7", cwd=folder).stdout


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
