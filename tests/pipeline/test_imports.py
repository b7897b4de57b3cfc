"""The direction of imports, and what a component's body may hold. Read from the source: nothing is imported."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloc.pipeline.sources import code_version, stage_sources
from cloc.stages import STAGES

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "cloc"
# Library -> where alone it may be imported.
HOMES = {
    "kfp": (),
    "torchx": ("training/launch/",),
    "mlflow": ("tracking/",),
    "great_expectations": ("validation/",),
}
# Parts of the package by height: a part imports from lower ones and from itself.
HEIGHTS = (
    ("errors", "boxes", "config", "stage", "pages"),
    ("data", "model", "tracking"),
    ("labeling", "validation", "training", "evaluation", "mllm"),
    ("stages",),
    ("pipeline", "ablation", "cluster", "playground"),
    ("cli",),
)
STAGE_PARTS = HEIGHTS[2]
HEAVY = (
    "torch",
    "transformers",
    "great_expectations",
    "pandas",
    "mlflow",
    "kfp",
    "peft",
    "pyarrow",
    "boto3",
    "torchx",
    "sklearn",
    "scipy",
    "matplotlib",
)
# What others may take from a stage's part. Pure modules: how a result is shown, how sure it is; and of training what
# knows nothing of what is trained: launch, ranks, checkpoints, records.
SHARED = {
    "cloc.evaluation.summary",
    "cloc.evaluation.statistics",
    "cloc.training.checkpoint",
    "cloc.training.distributed",
    "cloc.training.jobfile",
    "cloc.training.launch",
    "cloc.training.preemption",
    "cloc.training.process",
    "cloc.training.schedule",
    "cloc.training.watch.anomalies",
    "cloc.training.watch.clock",
    "cloc.training.watch.record",
    "cloc.training.watch.stall",
}


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (item.name for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield str(node.module)
            yield from (f"{node.module}.{item.name}" for item in node.names)


def _part(name: str) -> str:
    return name.split(".")[1]


def _files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("library", HOMES)
def test_library_has_one_home(library: str) -> None:
    homes = HOMES[library]
    strays = [
        str(path.relative_to(PACKAGE))
        for path in _files()
        if library in {name.split(".")[0] for name in _imports(path)}
        and not str(path.relative_to(PACKAGE)).startswith(homes or ("-",))
    ]
    assert not strays, f"{library} may be imported in {homes or 'components and pipelines'} only"


def _is_shared(name: str) -> bool:
    return any(f"{name}.".startswith(f"{shared}.") for shared in SHARED)


def test_imports_go_one_way() -> None:
    height = {part: number for number, parts in enumerate(HEIGHTS) for part in parts}
    wrong = []
    for path in _files():
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        assert part in height, f"say in HEIGHTS where {part} stands"
        for name in _imports(path):
            if not name.startswith("cloc.") or _part(name) not in height or _is_shared(name):
                continue
            if height[_part(name)] > height[part]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong


def test_stages_never_import_each_other() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for part in STAGE_PARTS
        for path in (PACKAGE / part).rglob("*.py")
        for name in _imports(path)
        if name.startswith("cloc.") and _part(name) in STAGE_PARTS and _part(name) != part and not _is_shared(name)
    ]
    assert not wrong


def _components() -> list[Path]:
    return sorted((ROOT / "components").glob("*/component.py"))


@pytest.mark.parametrize("path", _components(), ids=lambda path: path.parent.name)
def test_component_is_imports_and_one_call(path: Path) -> None:
    functions = [node for node in ast.parse(path.read_bytes()).body if isinstance(node, ast.FunctionDef)]
    name = path.parent.name
    assert [function.name for function in functions] in ([name], [name, f"{name}_part"])
    for function in functions:
        assert ast.get_docstring(function)
        statements = [item for item in function.body[1:] if not isinstance(item, ast.Import | ast.ImportFrom)]
        assert len(statements) == 1
        assert isinstance(statements[0], ast.Expr | ast.Return)
        assert isinstance(statements[0].value, ast.Call)
        decorator = ast.unparse(function.decorator_list[0])
        assert decorator == "dsl.component(base_image=IMAGE, install_kfp_package=False)"


@pytest.mark.parametrize("path", _components(), ids=lambda path: path.parent.name)
def test_component_readme_names_all(path: Path) -> None:
    functions = [node for node in ast.parse(path.read_bytes()).body if isinstance(node, ast.FunctionDef)]
    readme = path.with_name("README.md").read_text()
    missing = [item.arg for function in functions for item in function.args.args if f"`{item.arg}`" not in readme]
    assert not missing
    for heading in ("## Inputs", "## Outputs", "## Resources", "## Example", "## When it fails"):
        assert heading in readme


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        *([verb, "--help"] for verb in ("run", "ablate", "export", "pretrain", "config", "evaluate", "compare")),
    ],
)
def test_help_is_light(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom cloc.cli import cloc\n"
        f"cloc.main({arguments!r}, standalone_mode=False)\n"
        f"print('HEAVY', sorted(set(sys.modules) & set({HEAVY!r})))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout


@pytest.mark.parametrize("stage", STAGES)
def test_code_version_sees_what_the_stage_imports(stage: str) -> None:
    own = {str(path.relative_to(PACKAGE)) for path in stage_sources(stage)}
    assert f"{STAGES[stage].module.removeprefix('cloc.').replace('.', '/')}.py" in own
    assert {"data/dataset.py", "stage.py"} <= own or stage == "registration"
    assert not [item for item in own if item.startswith(("cli/", "pipeline/", "tracking", "config", "errors"))]
    assert code_version(stage) == code_version(stage)


@pytest.mark.parametrize(
    ("stage", "ranks", "others"),
    [
        ("pretraining", "training/trainer.py", "mllm/trainer.py"),
        ("adapter_tuning", "mllm/trainer.py", "training/trainer.py"),
    ],
)
def test_code_version_sees_what_ranks_run(stage: str, ranks: str, others: str) -> None:
    own = {str(path.relative_to(PACKAGE)) for path in stage_sources(stage)}
    assert {ranks, "training/agent.py"} <= own
    assert others not in own


def test_code_version_changes_with_code_and_not_with_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cloc.pipeline import sources

    copy = tmp_path / "cloc"
    for path in [*_files(), *PACKAGE.rglob("*.j2")]:
        target = copy / path.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    monkeypatch.setattr(sources, "_ROOT", copy)
    before = {stage: code_version(stage) for stage in STAGES}
    with (copy / "model" / "losses.py").open("a") as file:
        file.write("# a comment\n")
    assert {stage: code_version(stage) for stage in STAGES} == before
    with (copy / "model" / "losses.py").open("a") as file:
        file.write("CHANGED = 1\n")
    changed = {stage for stage in STAGES if code_version(stage) != before[stage]}
    assert "pretraining" in changed
    assert not changed & {"scenes", "ingest", "captioning", "grounding", "validation"}
