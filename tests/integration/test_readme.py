"""What README and docs show works: commands, options and settings exist, Python compiles and imports what there is, and
links and paths lead somewhere. The README's Python runs."""

import ast
import importlib
import importlib.util
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel

from cloc import CLOC
from cloc.cli import cloc
from cloc.config import Config, preset_names
from cloc.config.schema import ModelConfig, PrompterConfig, TextConfig, VisionConfig
from cloc.model.configuration import from_settings
from cloc.model.modeling import CLOCModel
from cloc.model.processing import CLOCProcessor, train_tokenizer
from tests.documents import PAGES, ROOT, anchors, blocks, commands, is_python, links, spans

README = (ROOT / "README.md").read_text()
# Of values that the text describes: no option, no file.
_PLACEHOLDER = re.compile(r"\.\.\.|[<>$*]|[A-Z]{3,}")
_FOLDERS = ("src/", "tests/", "docs/", "components/", "pipelines/", "benchmarks/", "infra/", ".dvc/", ".ci/")
_OTHERS = {"docs/model_profile.csv"}  # of open_clip
_SUFFIXES = (".py", ".md", ".yaml", ".json", ".dvc", ".tar", ".csv", ".html", ".lock", ".jsonl")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@each_page
def test_commands_exist(page: Path) -> None:
    checks = {"cloc": _check_cloc, "dvc": _check_dvc, "make": _check_make}
    for program, *words in commands(page):
        checks[program]([word for word in words if "..." not in word and not word.startswith("$")])


def _check_cloc(words: list[str]) -> None:
    shown, command = " ".join(["cloc", *words]), cloc
    with click.Context(cloc) as context:
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            found = command.get_command(context, words.pop(0))
            assert found is not None, f"no such verb: {shown}"
            command = found
    known = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
    given = [word.partition("=")[0] for word in words if word.startswith("-")]
    assert {*given} <= known | {"-h", "--help"}, f"no such option: {shown}"
    for option, value in pairwise(words):
        if option in ("-S", "--set"):
            assert _is_setting(value.partition("=")[0]), f"no such setting: {shown}"
        if option == "--preset":
            assert value in preset_names(), f"no such preset: {shown}"


def _is_setting(key: str) -> bool:
    schema: Any = Config
    for name in key.split("."):
        if not (isinstance(schema, type) and issubclass(schema, BaseModel)):
            return schema == "open"
        if name not in schema.model_fields:
            return False
        annotation = schema.model_fields[name].annotation
        schema = "open" if "Mapping" in str(annotation) or "dict" in str(annotation) else annotation
    return True


def _check_dvc(words: list[str]) -> None:
    from dvc.cli import DvcParserError
    from dvc.cli.parser import get_main_parser

    parser = get_main_parser()
    for targets in ([], ["target"], ["target", "target"]):  # prose names a command without them
        try:
            assert not words or parser.parse_args([*words, *targets])
            return
        except DvcParserError:
            continue
    pytest.fail(f"no such verb or option: dvc {' '.join(words)}")


def _check_make(words: list[str]) -> None:
    rules = (ROOT / "Makefile").read_text()
    for target in words:
        if "=" not in target and not target.startswith("-"):
            assert re.search(rf"^{re.escape(target)}:", rules, re.MULTILINE), f"no such target: make {target}"


@each_page
def test_settings_exist(page: Path) -> None:
    for span in spans(page.read_text()):
        named = re.fullmatch(r"([a-z_]+)((?:\.[a-z_]+)+)(?:(?:=|: ).*)?", span)
        if named and named[1] in Config.model_fields and not named[2].endswith(_SUFFIXES):
            assert _is_setting(named[1] + named[2]) or hasattr(CLOC, named[2][1:]), f"no such setting: {span}"


@each_page
def test_paths_exist(page: Path) -> None:
    text = page.read_text()
    shown = [*spans(text), *(block.text for block in blocks(text) if not is_python(block))]
    words = {word.strip(",;:()'\"") for code in shown for word in code.split()}
    for name in {word for word in words if word.startswith(_FOLDERS) and not _PLACEHOLDER.search(word)} - _OTHERS:
        path = name.partition("::")[0].partition("#")[0]
        braces = re.fullmatch(r"(.*)\{(.*)\}(.*)", path)
        for one in [f"{braces[1]}{part}{braces[3]}" for part in braces[2].split(",")] if braces else [path]:
            assert [*ROOT.glob(one)] or [*page.parent.glob(f"*/{one}")], f"no such path: {one}"


@each_page
def test_python_compiles_and_imports_what_there_is(page: Path) -> None:
    for block in filter(is_python, blocks(page.read_text())):
        for node in ast.walk(ast.parse(re.sub(r",\s*\.\.\.(?=[,)])", "", block.text), str(page))):
            if isinstance(node, ast.Import):
                for item in node.names:
                    assert importlib.util.find_spec(item.name), item.name
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                for item in node.names:
                    inner = hasattr(module, item.name) or importlib.util.find_spec(f"{node.module}.{item.name}")
                    assert inner, f"{node.module}.{item.name}"


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{link}: no such file"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{link}: no such heading"


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
