"""A researcher's days with DVC, from a clean clone to experiments, at toy size: whole trainings, so these are slow."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.pipeline.dvc_clone import clone, commit, copy, environment, new_repository, ran, run, write_params

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]  # whole pipelines, one after the other

TRAINING = ["pretraining@cloc", "pretraining@clip_equal_steps", "clip_equal_compute"]
AFTER = {*TRAINING, "evaluation", "figures", "registration", "answers"}
AFTER |= {f"adapter_tuning@{name}" for name in ("clip", "cloc", "cloc_prompter")}
BEFORE = {"code", "scenes", "teachers", "captioning", "grounding", "validation"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the whole pipeline ran, its records committed; tests change copies of it."""
    folder = clone(new_repository(tmp_path_factory.mktemp("journeys") / "repository"), "trained")
    assert set(ran(run(folder, "dvc", "repro"))) == BEFORE | AFTER
    commit(folder)
    return folder


def _headline(folder: Path) -> dict[str, Any]:
    shown = json.loads(run(folder, "dvc", "metrics", "show", "--json"))
    return dict(shown[""]["data"]["work/figures/metrics.json"]["data"])


def test_nothing_changed_nothing_runs(trained: Path) -> None:
    assert not ran(run(trained, "dvc", "repro"))
    assert {"clip-equal-steps", "clip-equal-compute", "cloc"} == set(_headline(trained)["region mAcc"])
    assert not list((trained / "work/unfinished").iterdir())


def test_one_training_parameter_trains_and_what_follows(trained: Path) -> None:
    folder = copy(trained, "parameter")
    write_params(folder, train__learning_rate="0.0005")
    assert set(ran(run(folder, "dvc", "repro"))) == AFTER
    changed = json.loads(run(folder, "dvc", "metrics", "diff", "--json"))
    assert changed["work/figures/metrics.json"]
    plots = json.loads(run(folder, "dvc", "plots", "diff", "HEAD", "--json"))
    losses = plots["data"]["Training losses"][0]["content"]
    rows = json.loads(losses)["data"]["values"] if isinstance(losses, str) else losses["data"]["values"]
    assert {(row["rev"], row["model"]) for row in rows} >= {("HEAD", "CLOC"), ("workspace", "CLOC")}


def _experiments(folder: Path) -> dict[str, dict[str, Any]]:
    """What `dvc exp show` knows of each experiment, by name."""
    (baseline,) = [
        item for item in json.loads(run(folder, "dvc", "exp", "show", "--json")) if item["rev"] != "workspace"
    ]
    found = [state for item in baseline["experiments"] or () for state in item["revs"]]
    return {state["name"]: state["data"] for state in found}


def _rates(folder: Path) -> dict[str, float]:
    experiments = _experiments(folder)
    return {name: data["params"]["params.yaml"]["data"]["train"]["learning_rate"] for name, data in experiments.items()}


def test_experiments_of_the_workspace_and_of_the_queue(trained: Path) -> None:
    """Queued ones run in copies of the repository: they find data and labels in the cache, and render nothing."""
    folder = copy(trained, "experiments")
    printed = run(folder, "dvc", "exp", "run", "--name", "slow-rate", "-S", "train.learning_rate=0.0001", "figures")
    assert set(ran(printed)) == {*TRAINING, "evaluation", "figures"}
    run(folder, "dvc", "exp", "run", "--queue", "-S", "train.learning_rate=0.001,0.003,0.004", "pretraining@cloc")
    printed = run(folder, "dvc", "exp", "run", "--run-all")
    assert ran(printed) == ["pretraining@cloc"] * 3
    rates = _rates(folder)
    assert rates["slow-rate"] == 0.0001
    assert sorted(rates.values()) == [0.0001, 0.001, 0.003, 0.004]
    assert all(not data.get("error") for data in _experiments(folder).values())
    base, name = _headline(trained)["image→text R@1"], "work/figures/metrics.json"
    assert set(_experiments(folder)["slow-rate"]["metrics"][name]["data"]["image→text R@1"]) == set(base)


def _start(folder: Path) -> "subprocess.Popen[bytes]":
    command = ["dvc", "repro", "pretraining@cloc"]
    with (folder / "repro.log").open("wb") as log:
        return subprocess.Popen(
            command, cwd=folder, env=environment(folder), stdout=log, stderr=log, start_new_session=True
        )


def _checkpoints(folder: Path) -> list[Path]:
    return [path.parent for path in folder.glob("work/unfinished/cloc/*/checkpoints/step-*/state.json")]


def _wait_for_checkpoint(folder: Path, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 600
    while not _checkpoints(folder):
        assert process.poll() is None, (folder / "repro.log").read_text()
        assert time.monotonic() < deadline, (folder / "repro.log").read_text()
        time.sleep(0.05)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_interrupted_training_goes_on(trained: Path, how: signal.Signals) -> None:
    folder = copy(trained, how.name)
    write_params(folder, train__steps="40")
    process = _start(folder)
    _wait_for_checkpoint(folder, process)
    if how is signal.SIGINT:
        os.killpg(process.pid, how)  # as Ctrl-C in a terminal does
    else:
        for victim in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            victim.kill()
    assert process.wait(timeout=300) != 0
    assert not (folder / "work/models/cloc/training.json").exists()
    reached = max(int(path.name.removeprefix("step-")) for path in _checkpoints(folder))
    printed = run(folder, "dvc", "repro", "pretraining@cloc")
    assert ran(printed) == ["pretraining@cloc"]
    assert min(int(step) for step in re.findall(r"cloc step (\d+)/40", printed)) > reached >= 2
    records = (folder / "work/models/cloc/metrics.jsonl").read_text().splitlines()
    assert [json.loads(record)["step"] for record in records] == list(range(1, 41))
    assert not (folder / "work/unfinished/cloc").exists()
