"""`dvc repro`, as a researcher uses it: in clones without a remote, at toy size."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloc.config import dump, flatten
from cloc.pipeline.sources import stage_sources
from cloc.stages import STAGES
from tests.pipeline import toy

ROOT = Path(__file__).parents[2]
TRACKED = ("dvc.yaml", "data.dvc", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore")
RAN = re.compile(r"^Running stage '([^']+)':$", re.MULTILINE)
# Stage of dvc.yaml -> stage of the registry.
STAGE_OF = {
    "cloc": "pretraining",
    "clip_equal_steps": "pretraining",
    "clip_equal_compute": "pretraining",
    "adapter_tuning": "adapter_tuning",
}
UNTRACKED = ("figures", "answers")  # no stages of cloc: they show what others made
TRAINING = {"cloc", "clip_equal_steps", "clip_equal_compute"}
ADAPTERS = {"adapter_tuning@clip", "adapter_tuning@cloc", "adapter_tuning@cloc_prompter"}


def _stages() -> dict[str, Any]:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    return {name: stage.get("do", stage) for name, stage in stages.items()}


def _run(folder: Path, *command: str) -> str:
    """Runs a command in a clone, as from an activated environment; returns what it printed."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder / "src"),
        "OMP_NUM_THREADS": "1",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(folder.parent / "dvc-site"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder.parent}/mlflow.db",
        "GIT_AUTHOR_NAME": "tests",
        "GIT_AUTHOR_EMAIL": "tests@localhost",
        "GIT_COMMITTER_NAME": "tests",
        "GIT_COMMITTER_EMAIL": "tests@localhost",
    }
    environment.pop("MLFLOW_RUN_ID", None)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def _commit(folder: Path) -> None:
    _run(folder, "git", "add", "-A")
    _run(folder, "git", "commit", "-qm", "state")


def _write_params(folder: Path, **changes: str) -> None:
    (folder / "params.yaml").write_text(dump(toy.config(**changes)))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with this one's DVC files and code, and settings of toy size; nothing was run in it."""
    folder = tmp_path_factory.mktemp("dvc") / "repository"
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in TRACKED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    _write_params(folder)
    _run(folder, "git", "init", "-q")
    _commit(folder)
    return folder


def _clone(repository: Path, name: str) -> Path:
    folder = repository.parent / name
    _run(repository.parent, "git", "clone", "-q", str(repository), name)
    return folder


@pytest.fixture(scope="module")
def labelled(repository: Path) -> Path:
    """A clone in which the pipeline ran up to its first gate."""
    folder = _clone(repository, "labelled")
    printed = _run(folder, "dvc", "repro", "validation")
    assert RAN.findall(printed) == ["scenes", "teachers", "captioning", "grounding", "validation"]
    return folder


@pytest.mark.parametrize("name", [name for name in _stages() if name not in UNTRACKED])
def test_stage_tracks_its_settings_and_code(name: str) -> None:
    stage = _stages()[name]
    spec = STAGES[STAGE_OF.get(name, name)]
    if name == "scenes":  # the rest of its section cannot change the pictures
        assert stage["params"] == ["data.images_per_shard", "data.scenes"]
    else:
        assert tuple(stage["params"]) == spec.sections
    code = [item for item in stage["deps"] if item.startswith("src/")]
    assert all((ROOT / item).exists() for item in code)
    if name != "registration":
        own = "/".join(spec.module.split(".")[:-1])
        assert f"src/{own}" in code
    uses_model = any("model" in path.parts[-2:-1] for path in stage_sources(spec.name))
    assert ("src/cloc/model" in code) == uses_model


def test_params_of_stages_exist() -> None:
    known = flatten(toy.config().model_dump(mode="json"))
    for stage in _stages().values():
        for key in stage.get("params", ()):
            assert any(name == key or name.startswith(f"{key}.") for name in known)


def test_clean_clone_makes_its_data(labelled: Path) -> None:
    tracked = yaml.safe_load((labelled / "data.dvc").read_text())["outs"][0]
    assert tracked["path"] == "data"
    assert tracked["md5"].endswith(".dir")
    assert (labelled / "data/train/manifest.json").is_file()
    # DVC wrote its records and nothing else that git sees.
    assert _run(labelled, "git", "status", "--short").split() == ["M", "data.dvc", "??", "dvc.lock"]


def test_nothing_changed_nothing_runs(labelled: Path) -> None:
    printed = _run(labelled, "dvc", "repro", "validation")
    assert not RAN.findall(printed)
    assert "Data and pipelines are up to date." in printed


def test_another_clone_renders_the_recorded_data(labelled: Path) -> None:
    _commit(labelled)
    other = _clone(labelled, "other")
    printed = _run(other, "dvc", "repro", "data.dvc")
    assert RAN.findall(printed) == ["scenes"]
    assert _run(other, "git", "status", "--short") == "", "the pictures are not those whose hash was recorded"


def test_one_setting_reaches_its_stages_only(labelled: Path) -> None:
    """Outputs of the later stages are put in place by hand: what counts here is DVC's view of what has changed."""
    folder = _clone(labelled, "settings")
    for name in ("data", "work", ".dvc/cache"):
        shutil.copytree(labelled / name, folder / name)
    for name in ("cloc", "clip_equal_steps", "clip_equal_compute"):
        (folder / "work/models" / name).mkdir(parents=True)
        (folder / "work/models" / name / "training.json").write_text(name)
    files = ["evaluation/metrics.json", "figures/metrics.json", "registration/receipt.json"]
    adapters = [f"adapters/{name}/results.json" for name in ("clip", "cloc", "cloc_prompter")]
    for name in [*files, *adapters, "answers/results.json"]:
        (folder / "work" / name).parent.mkdir(parents=True)
        (folder / "work" / name).write_text(name)
    _run(folder, "dvc", "commit", "--force")
    assert not RAN.findall(_run(folder, "dvc", "repro", "--dry"))
    expected = {
        "train__learning_rate": ("0.5", TRAINING | ADAPTERS),  # they are launched as section train says
        "loss__region_weight": ("0.5", TRAINING),
        "evaluation__pictures": ("3", {"evaluation", "registration"}),
        "adapter__learning_rate": ("0.5", ADAPTERS),
        "grounding__max_phrases": ("3", {"grounding"}),
        "data__scenes__seed": (
            "7",
            {"scenes", "teachers", "captioning", "grounding", "validation", "evaluation"} | TRAINING | ADAPTERS,
        ),
    }
    for key, (value, stages) in expected.items():
        _write_params(folder, **{key: value})
        assert set(RAN.findall(_run(folder, "dvc", "repro", "--dry"))) == stages, key


@pytest.mark.slow
def test_whole_journey(labelled: Path) -> None:
    """Clean clone to the end; nothing; one training parameter: training and what follows; figures and plots."""
    printed = _run(labelled, "dvc", "repro")
    assert set(RAN.findall(printed)) == {"evaluation", "figures", "registration", "answers"} | TRAINING | ADAPTERS
    assert not RAN.findall(_run(labelled, "dvc", "repro"))
    assert "region mAcc" in _run(labelled, "dvc", "metrics", "show")
    assert "image loss" in _run(labelled, "dvc", "plots", "show", "--json").lower()
    _write_params(labelled, train__learning_rate="0.0005")
    printed = _run(labelled, "dvc", "repro")
    assert set(RAN.findall(printed)) == {"evaluation", "figures", "registration", "answers"} | TRAINING | ADAPTERS
    assert "Stage 'validation' didn't change" in printed
