"""`dvc repro`, as a researcher uses it: in clones without a remote, at toy size, up to the gate before training."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from cloc.config import flatten
from cloc.pipeline import code
from cloc.stages import STAGES
from tests import s3_server
from tests.pipeline import toy
from tests.pipeline.dvc_clone import (
    attempt,
    clone,
    commit,
    copy,
    edit_params,
    new_repository,
    ran,
    run,
    stages,
    write_params,
)

# Stage of dvc.yaml -> stage of the registry, where the names differ.
STAGE_OF = {"clip_equal_compute": "pretraining"}
SHOWING = ("figures", "answers")  # no stages of cloc: they show what others made
LABELLING = ["code", "scenes", "teachers", "captioning", "grounding", "validation"]
TRAINING = {"pretraining@cloc", "pretraining@clip_equal_steps", "clip_equal_compute"}
ADAPTERS = {"adapter_tuning@clip", "adapter_tuning@cloc", "adapter_tuning@cloc_prompter"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which nothing was run."""
    return new_repository(tmp_path_factory.mktemp("dvc") / "repository")


@pytest.fixture(scope="module")
def labelled(repository: Path) -> Path:
    """A clone in which the pipeline ran up to its first gate, its records committed; tests change copies of it."""
    folder = clone(repository, "labelled")
    assert ran(run(folder, "dvc", "repro", "validation")) == LABELLING
    # DVC wrote its records and nothing else that git sees.
    assert run(folder, "git", "status", "--short").split() == ["M", "data.dvc", "??", "dvc.lock"]
    commit(folder)
    return folder


@pytest.mark.parametrize("name", [name for name in stages() if name != "code"])
def test_stage_tracks_its_settings_and_its_code(name: str) -> None:
    stage = stages()[name]
    source = STAGE_OF.get(name, name)
    assert [item for item in stage["deps"] if item.startswith("work/code/")] == [f"work/code/{source}"]
    assert source in code.MODULES
    assert not [item for item in stage["deps"] if item.startswith("src")]
    if name == "scenes":  # the rest of its section cannot change the pictures
        assert stage["params"] == ["data.images_per_shard", "data.scenes"]
    elif name not in SHOWING:
        assert tuple(stage["params"]) == STAGES[source].sections


def test_every_stage_runs_the_code_beside_it() -> None:
    for name, stage in stages().items():
        commands = stage["cmd"] if isinstance(stage["cmd"], list) else [stage["cmd"]]
        assert commands[0].startswith(("${cloc} ", 'PYTHONPATH="$PWD/src" python -m cloc.')), name


def test_params_of_stages_exist() -> None:
    known = flatten(toy.config().model_dump(mode="json"))
    for stage in stages().values():
        for key in stage.get("params", ()):
            assert any(name == key or name.startswith(f"{key}.") for name in known)


def test_clean_clone_makes_its_data(labelled: Path) -> None:
    tracked = yaml.safe_load((labelled / "data.dvc").read_text())["outs"][0]
    assert tracked["path"] == "data"
    assert tracked["md5"].endswith(".dir")
    assert (labelled / "data/train/manifest.json").is_file()


def test_nothing_changed_nothing_runs(labelled: Path) -> None:
    printed = run(labelled, "dvc", "repro", "validation")
    assert not ran(printed)
    assert "Data and pipelines are up to date." in printed


def test_another_clone_renders_the_recorded_data(labelled: Path) -> None:
    other = clone(labelled, "other")
    assert ran(run(other, "dvc", "repro", "data.dvc")) == ["code", "scenes"]
    assert run(other, "git", "status", "--short") == "", "the pictures are not those whose hash was recorded"


def test_one_setting_reaches_its_stages_only(labelled: Path) -> None:
    """Outputs of the later stages are put in place by hand: what counts here is DVC's view of what has changed."""
    folder = copy(labelled, "settings")
    for name in ("cloc", "clip_equal_steps", "clip_equal_compute"):
        (folder / "work/models" / name).mkdir(parents=True)
        (folder / "work/models" / name / "training.json").write_text(name)
    files = ["evaluation/metrics.json", "figures/metrics.json", "registration/receipt.json"]
    adapters = [f"adapters/{name}/results.json" for name in ("clip", "cloc", "cloc_prompter")]
    for name in [*files, *adapters, "answers/results.json"]:
        (folder / "work" / name).parent.mkdir(parents=True)
        (folder / "work" / name).write_text(name)
    run(folder, "dvc", "commit", "--force")
    assert not ran(run(folder, "dvc", "repro", "--dry"))
    expected = {
        "train__learning_rate": ("0.5", TRAINING | ADAPTERS),  # they are launched as section train says
        "loss__region_weight": ("0.5", TRAINING),
        "evaluation__pictures": ("3", {"evaluation", "registration"}),
        "adapter__learning_rate": ("0.5", ADAPTERS),
        "grounding__max_phrases": ("3", {"grounding"}),
        "data__scenes__seed": ("7", {*LABELLING, "evaluation"} - {"code"} | TRAINING | ADAPTERS),
    }
    for key, (value, reached) in expected.items():
        write_params(folder, **{key: value})
        assert set(ran(run(folder, "dvc", "repro", "--dry"))) == reached, key


def test_one_change_of_code_reaches_its_stages_only(labelled: Path) -> None:
    folder = copy(labelled, "source")
    with (folder / "src/cloc/labeling/captioning.py").open("a") as file:
        file.write("\n# a remark\n")
    assert ran(run(folder, "dvc", "repro", "validation")) == ["code"]
    with (folder / "src/cloc/validation/summary.py").open("a") as file:
        file.write("\nADDED = 1\n")
    assert ran(run(folder, "dvc", "repro", "validation")) == ["code", "validation"]


def _tables(folder: Path, name: str) -> dict[str, tuple[int, bytes]]:
    files = sorted((folder / "work" / name).rglob("*.parquet"))
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_only_an_added_shard_is_labelled(labelled: Path) -> None:
    folder = copy(labelled, "grown")
    before = {name: _tables(folder, name) for name in ("captions", "regions")}
    shards = json.loads((folder / "data/train/manifest.json").read_text())["shards"]
    write_params(folder, data__scenes__train_images="80")
    printed = run(folder, "dvc", "repro", "validation")
    assert ran(printed) == [name for name in LABELLING if name != "code"]
    assert "of 80 images captioned (40 stood already" in printed
    assert "of 80 images grounded (40 stood already" in printed
    assert json.loads((folder / "data/train/manifest.json").read_text())["shards"][:-1] == shards
    for name, tables in before.items():
        grown = _tables(folder, name)
        assert {path: grown[path] for path in tables} == tables, "a table that stood was written again"
        assert len(grown) == len(tables) * 2
    assert set(ran(run(folder, "dvc", "repro", "--dry", "pretraining"))) >= {"pretraining@cloc"}


WRONG_SETTINGS: dict[str, tuple[dict[str, str], str]] = {
    "misspelt": (
        {"  max_phrases: 20": "  max_phrase: 20"},
        "params.yaml: unknown key grounding.max_phrase (did you mean grounding.max_phrases?)",
    ),
    "missing": (
        {"  max_phrases: 20": ""},
        "params.yaml: missing key grounding.max_phrases (default 20); add it to the file",
    ),
    "type": (
        {"  max_phrases: 20": "  max_phrases: many"},
        "params.yaml: grounding.max_phrases: input should be a valid integer",
    ),
}


@pytest.mark.parametrize("case", WRONG_SETTINGS)
def test_wrong_settings_are_one_line(labelled: Path, case: str) -> None:
    edit, message = WRONG_SETTINGS[case]
    folder = copy(labelled, case)
    edit_params(folder, edit)
    status, printed = attempt(folder, "dvc", "repro", "validation")
    assert status != 0
    own = [line for line in printed.splitlines() if line.startswith("error:")]
    assert len(own) == 1, printed
    assert message in own[0]
    assert "Traceback" not in printed


def test_two_clones_share_a_cache(labelled: Path) -> None:
    folder = clone(labelled, "sharing")
    run(folder, "dvc", "config", "--local", "cache.dir", str(labelled / ".dvc/cache"))
    run(folder, "dvc", "checkout", "--allow-missing")
    assert not ran(run(folder, "dvc", "repro", "validation"))
    assert _tables(folder, "captions").keys() == _tables(labelled, "captions").keys()


def _remote(folder: Path, endpoint: str) -> None:
    run(folder, "dvc", "remote", "add", "-d", "store", "s3://bucket/dvc")
    run(folder, "dvc", "remote", "modify", "store", "endpointurl", endpoint)
    commit(folder)


@s3_server.needs_server
def test_results_go_through_a_remote(labelled: Path, tmp_path: Path) -> None:
    """A second clone pulls and runs nothing; with the server gone a push is one clear failure, and work goes on."""
    folder = copy(labelled, "pushing")
    keys = {"AWS_ACCESS_KEY_ID": s3_server.ACCESS, "AWS_SECRET_ACCESS_KEY": s3_server.SECRET}
    keys |= {"AWS_MAX_ATTEMPTS": "1", "AWS_DEFAULT_REGION": "us-east-1"}
    with s3_server.serving_s3(tmp_path) as server:
        _remote(folder, server.endpoint)
        assert "pushed" in run(folder, "dvc", "push", **keys)
        other = clone(folder, "pulled")
        run(other, "dvc", "pull", "--allow-missing", **keys)
        assert not ran(run(other, "dvc", "repro", "validation"))
    status, printed = attempt(folder, "dvc", "push", **keys)
    assert status != 0
    (failure,) = [line for line in printed.splitlines() if line.startswith("ERROR:")]
    assert f'Could not connect to the endpoint URL: "{server.endpoint}' in failure
    assert "Traceback" not in printed
    assert not ran(run(folder, "dvc", "repro", "validation"))


def _failure(folder: Path, *command: str) -> str:
    """The one line that a command failed with."""
    status, printed = attempt(folder, *command)
    assert status != 0
    assert "Traceback" not in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("ERROR:")]
    return line


def test_missing_data_are_named_and_come_back_from_the_cache(labelled: Path) -> None:
    folder = copy(labelled, "emptied")
    shutil.rmtree(folder / "data")
    assert _failure(folder, "dvc", "repro", "validation").endswith("missing data 'source': data")
    run(folder, "dvc", "checkout", "data")
    assert not ran(run(folder, "dvc", "repro", "validation"))


def test_an_output_that_cannot_be_written_is_named(labelled: Path) -> None:
    folder = copy(labelled, "unwritable")
    shutil.rmtree(folder / "work/reports")
    (folder / "work/reports").touch()  # no folder can be made there, whoever asks
    assert str(folder / "work/reports/captioning") in _failure(folder, "dvc", "repro", "validation")


def test_a_setting_that_does_not_exist_makes_no_experiment(labelled: Path) -> None:
    folder = copy(labelled, "unknown")
    line = _failure(folder, "dvc", "exp", "run", "-S", "grounding.max_phrase=3", "validation")
    assert "Could not override 'grounding.max_phrase'" in line
    assert run(folder, "git", "status", "--short") == ""
