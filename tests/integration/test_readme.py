"""What the README shows works: its Python runs, and its commands and options exist."""

import re
import shlex
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image

from cloc.cli import cloc
from cloc.config.schema import ModelConfig, PrompterConfig, TextConfig, VisionConfig
from cloc.model.configuration import from_settings
from cloc.model.modeling import CLOCModel
from cloc.model.processing import CLOCProcessor, train_tokenizer

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    lines = [line.strip() for line in README.splitlines() if line.startswith("    cloc ")]
    return [re.split(r"\s{2,}#", line)[0] for line in lines]


@pytest.mark.parametrize("line", commands())
def test_command_and_options_exist(line: str) -> None:
    words = shlex.split(line)[1:]
    command: click.Command = cloc
    with click.Context(cloc) as context:
        while isinstance(command, click.Group):
            found = command.get_command(context, words.pop(0))
            assert found is not None, line
            command = found
    known = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
    assert {word for word in words if word.startswith("-")} <= known


def test_the_make_targets_exist() -> None:
    rules = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^    )make ([a-z-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", rules, re.MULTILINE), target


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ModelConfig(
        embed_dim=16,
        vision=VisionConfig(image_size=32, patch_size=8, width=16, layers=1, heads=2),
        text=TextConfig(width=16, layers=1, heads=2, context_length=8),
        prompter=PrompterConfig(pool="prompt", spatial_bias="box"),
    )
    tokenizer = train_tokenizer(["red apple", "blue key"], vocab_size=540, context_length=8)
    folder = tmp_path / "runs" / "demo" / "model"
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    CLOCModel(from_settings(config, vocab_size=len(tokenizer), **ids)).save_pretrained(folder)
    CLOCProcessor(tokenizer, image_size=32, context_length=8).save_pretrained(folder)
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    named = names["named"]
    assert len(named) == 3
    assert {label.text for label in named} <= {"a red apple", "a blue key", "a green cup"}
    assert all(1 / 3 <= label.score <= 1 for label in named)
    found = np.array(re.findall(r"[\d.]+", capsys.readouterr().out.splitlines()[-1]), dtype=float)
    assert found.shape == (4,)
    assert ((found >= 0) & (found <= 1)).all()
