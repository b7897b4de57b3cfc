"""The pages of docs that list things list what there is: stages, messages, functions, dependencies."""

import ast
import importlib
import re
import sys
import tomllib
from dataclasses import MISSING, fields
from importlib.metadata import packages_distributions
from typing import Any

import pytest

from cloc.stages import STAGES
from tests.documents import ROOT, is_said, rows, section, spans

DOCS = ROOT / "docs"
STAGES_PAGE = (DOCS / "stages.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _listed(text: str, what: str) -> list[str]:
    """The names that a list item of a stage's section has in code, without what is said of them in brackets."""
    match = re.search(rf"^- {what}: (.*?)(?=^- |^$)", text, re.MULTILINE | re.DOTALL)
    assert match, f"no item {what!r}"
    return spans(re.sub(r"\([^)]*\)", "", match[1]))


def _fields(cls: Any) -> list[str]:
    return [
        item.name if item.default is MISSING and item.default_factory is MISSING else f"{item.name}?"
        for item in fields(cls)
    ]


def test_the_index_has_every_page_once() -> None:
    listed = re.findall(r"\]\((\w+\.md)\)", (DOCS / "README.md").read_text())
    assert sorted(listed) == sorted(path.name for path in DOCS.glob("*.md") if path.name != "README.md")


def test_the_stages_are_those_of_the_registry() -> None:
    assert re.findall(r"^## (.+)$", STAGES_PAGE, re.MULTILINE) == list(STAGES)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_has_its_inputs_outputs_and_settings(name: str) -> None:
    text, module = section(STAGES_PAGE, name), importlib.import_module(STAGES[name].module)
    assert _listed(text, "inputs") == _fields(module.Inputs)
    assert _listed(text, "outputs") == _fields(module.Outputs)
    assert tuple(_listed(text, "settings")) == STAGES[name].sections


@pytest.mark.parametrize("name", STAGES)
def test_messages_of_a_stage_are_said(name: str) -> None:
    messages = [spans(first)[0] for first, *_ in rows(section(STAGES_PAGE, name))]
    assert messages
    assert not [message for message in messages if not is_said(message)]


def test_messages_of_the_faq_are_said() -> None:
    headings = re.findall(r"^\*\*(.+)\*\*$", (DOCS / "faq.md").read_text(), re.MULTILINE)
    messages = [message for heading in headings for message in spans(heading)]
    assert len(messages) > 30
    assert not [message for message in messages if not is_said(message)]


def test_what_no_source_says_is_not_said() -> None:
    assert not is_said("the moon is not registered")
    assert not is_said("is not registered: ... had to be quarantined")


def _resolved(name: str) -> Any:
    """What a dotted name means: a module, or something in one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def test_functions_of_the_paper_exist() -> None:
    names = {span for span in spans((DOCS / "paper.md").read_text()) if re.fullmatch(r"cloc(\.\w+)+", span)}
    assert len(names) > 40
    for name in sorted(names):
        assert _resolved(name) is not None, name


def _project(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return match[0]


def _imported() -> set[str]:
    """Top-level names that the product's code imports and that are neither ours nor Python's."""
    found: set[str] = set()
    for path in [path for folder in ("src", "components", "pipelines") for path in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_bytes())):
            names = [item.name for item in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            found |= {name.split(".")[0] for name in names}
    return found - set(sys.stdlib_module_names) - {"cloc", "components", "pipelines"}


def test_what_is_imported_is_named() -> None:
    page = (DOCS / "dependencies.md").read_text()
    named = {_normal(spans(package)[0]) for package, _ in rows(page)}
    providers = {name: {_normal(item) for item in found} for name, found in packages_distributions().items()}
    assert not [name for name in sorted(_imported()) if name in providers and not named & providers[name]]


def _normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_dependencies_are_those_of_the_project() -> None:
    page = (DOCS / "dependencies.md").read_text()
    extras = {"Always installed": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    del extras["all"]
    for title, requirements in extras.items():
        listed = [spans(package)[0] for package, _ in rows(section(page, title))]
        assert sorted(listed) == sorted({_project(item) for item in requirements} - {"cloc"}), title
