"""The same training whatever happens to it: on one, two and four processes, killed, told to stop, and started again."""

import json
import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cloc.training.checkpoint import TrainingState
from cloc.training.job import TrainingJob
from cloc.training.preemption import PREEMPTED
from tests.conftest import write_dataset
from tests.integration import training_runs as runs

# Between numbers of ranks: sums are taken in another order, in float32, and eight steps of Muon and AdamW amplify that.
LOSS_TOLERANCE = 1e-4  # relative (seen: 4e-5)
WEIGHT_TOLERANCE = 1e-3  # absolute (seen: 1.5e-4); weights have moved by up to 8 steps of 1e-3, about


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data") / "train", 24, shard_size=4)


def trained(data: str, out: Path, *, fault: dict[str, Any] | None = None, **train: Any) -> runs.Ended:
    ended = runs.run(runs.config(**train), data, out, fault=fault)
    assert ended.code == 0, ended.err[-2000:]
    return ended


@pytest.fixture(scope="module")
def two(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks that nothing happens to."""
    out = tmp_path_factory.mktemp("two")
    trained(data, out, processes=2)
    return out


def here(out: Path, like: Path, **train: Any) -> TrainingState:
    """Trains, or goes on, on one rank in this process as the run `like`."""
    given = TrainingJob.load(str(like))
    config = runs.config(**train).model_dump(mode="json")
    return runs.train_here(replace(given, config=config, output=str(out), tokenizer=f"{like}/tokenizer"))


def steps_of(out: Path) -> list[int]:
    """Of the checkpoints that stand."""
    return sorted(int(path.parent.name[5:]) for path in (out / "checkpoints").glob("step-*/state.json"))


def assert_close(one: Path, other: Path) -> None:
    """Up to the order of sums."""
    torch.testing.assert_close(runs.curve(one), runs.curve(other), rtol=LOSS_TOLERANCE, atol=0)
    first, second = runs.weights(one), runs.weights(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(
            second[name], value, rtol=0, atol=WEIGHT_TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
        )


def assert_bitwise(one: Path, other: Path) -> None:
    """Every loss, and every weight."""
    assert runs.curve(one) == runs.curve(other)
    runs.assert_same_weights(one, other)


def test_one_two_and_four_processes_give_the_same_curve(data: str, two: Path, tmp_path: Path) -> None:
    here(tmp_path / "one", two)
    trained(data, tmp_path / "four", processes=4)
    assert_close(tmp_path / "one", two)
    assert_close(tmp_path / "four", two)
    assert len(set(runs.curve(two))) == 8


def test_the_same_run_twice_is_bitwise_the_same_and_another_seed_is_not(two: Path, tmp_path: Path) -> None:
    here(tmp_path / "first", two)
    here(tmp_path / "second", two)
    assert_bitwise(tmp_path / "first", tmp_path / "second")
    here(tmp_path / "other", two, seed=1)
    assert runs.curve(tmp_path / "other") != runs.curve(tmp_path / "first")


def test_a_rank_killed_at_a_random_step_changes_nothing(data: str, two: Path, tmp_path: Path) -> None:
    fault = {
        "do": "kill",
        "rank": random.randrange(2),
        "step": random.randrange(1, 9),
        "marker": str(tmp_path / "done"),
    }
    ended = trained(data, tmp_path / "out", processes=2, max_retries=1, fault=fault)
    assert (tmp_path / "done").exists()
    assert f"attempt 1 of 2 failed: rank {fault['rank']} on " in ended.out, fault
    assert_bitwise(tmp_path / "out", two)


def test_a_run_told_to_stop_saves_that_step_and_goes_on(data: str, two: Path, tmp_path: Path) -> None:
    """SIGTERM to the launching process; then the same command, and one on another number of ranks."""
    out = tmp_path / "out"
    fault = {"do": "signal launcher", "signal": "SIGTERM", "rank": 1, "step": 2}
    ended = runs.run(runs.config(processes=2, checkpoint_every=100), data, out, fault=fault)
    assert ended.code == PREEMPTED, ended.err[-2000:]
    assert ended.last.startswith("error: told to stop by SIGTERM: its ranks saved; run the same command again")
    (step,) = steps_of(out)
    assert step == len(runs.curve(out))
    assert 2 <= step < 8
    shutil.copytree(out, tmp_path / "one")
    trained(data, out, processes=2, checkpoint_every=100)
    assert_bitwise(out, two)
    here(tmp_path / "one", two)
    assert_close(tmp_path / "one", two)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_that_is_told_to_stop_stops_all_of_them(data: str, two: Path, tmp_path: Path, rank: int) -> None:
    fault = {"do": "sigterm", "rank": rank, "step": 4}
    ended = runs.run(runs.config(processes=2, checkpoint_every=100), data, tmp_path / "out", fault=fault)
    assert ended.code == PREEMPTED, ended.err[-2000:]
    assert steps_of(tmp_path / "out") == [4]
    trained(data, tmp_path / "out", processes=2)
    assert_bitwise(tmp_path / "out", two)


@pytest.mark.slow
def test_a_preempted_rank_is_started_again(data: str, two: Path, tmp_path: Path) -> None:
    fault = {"do": "sigterm", "rank": 0, "step": 4, "marker": str(tmp_path / "done")}
    trained(data, tmp_path / "out", processes=2, max_retries=1, fault=fault)
    assert (tmp_path / "done").exists()
    assert_bitwise(tmp_path / "out", two)


def marker_of(out: Path, step: int) -> Path:
    """What makes a checkpoint whole."""
    return out / "checkpoints" / f"step-{step:08d}" / "state.json"


@pytest.mark.slow
def test_an_end_without_warning_loses_only_the_steps_since_the_last_checkpoint(
    data: str, two: Path, tmp_path: Path
) -> None:
    """kill -9 of launcher, agent and ranks at once."""
    out = tmp_path / "out"
    fault = {"do": "kill all", "rank": 0, "step": 5}
    ended = runs.run(runs.config(processes=2, checkpoint_async=False), data, out, fault=fault)
    assert ended.code == -signal.SIGKILL
    assert steps_of(out) == [3]
    written = marker_of(out, 3).stat().st_mtime_ns
    trained(data, out, processes=2)
    assert marker_of(out, 3).stat().st_mtime_ns == written
    assert_bitwise(out, two)


@pytest.mark.slow
def test_ctrl_c_saves(data: str, two: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fault = {"do": "signal launcher", "signal": "SIGINT", "rank": 0, "step": 2}
    ended = runs.run(runs.config(processes=2, checkpoint_every=100), data, out, fault=fault)
    assert (ended.code, ended.last) == (130, "interrupted")
    assert steps_of(out) == [len(runs.curve(out))]
    trained(data, out, processes=2)
    assert_bitwise(out, two)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_killed_in_the_middle_of_a_save_changes_nothing(data: str, two: Path, tmp_path: Path, rank: int) -> None:
    fault = {"do": "kill in save", "rank": rank, "step": 6, "marker": str(tmp_path / "done")}
    ended = trained(data, tmp_path / "out", processes=2, max_retries=1, fault=fault)
    assert (tmp_path / "done").exists()
    assert "attempt 2 of 2" in ended.out
    assert_bitwise(tmp_path / "out", two)
    assert steps_of(tmp_path / "out") == [3, 6]


@pytest.mark.slow
def test_a_run_of_one_rank_goes_on_on_two(data: str, two: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    here(out, two)
    for path in (out / "checkpoints").glob("step-*"):
        if path.name != "step-00000003":
            shutil.rmtree(path)
    (out / "model.safetensors").unlink()
    shutil.copytree(two / "tokenizer", out / "tokenizer")
    written = marker_of(out, 3).stat().st_mtime_ns
    trained(data, out, processes=2)
    assert marker_of(out, 3).stat().st_mtime_ns == written
    assert steps_of(out) == [3, 6]
    assert_close(out, two)


@pytest.mark.slow
def test_a_batch_that_is_bad_on_one_rank_is_skipped_on_all(data: str, two: Path, tmp_path: Path) -> None:
    """The judgement is that of one process, and so are the keys, in the order of the ranks."""
    given = TrainingJob.load(str(two))
    settings = runs.config(processes=2, on_nonfinite="skip")
    out = tmp_path / "out"
    ended = trained(data, out, processes=2, on_nonfinite="skip", fault={"do": "poison", "key": "000005"})
    lines = [json.loads(line) for line in (out / "bad_batches.jsonl").read_text().splitlines()]
    assert lines
    assert all("000005" in line["keys"] and len(line["keys"]) == 8 for line in lines)
    assert runs.curve(out, "train/skipped_batches")[-1] == len(lines)
    assert ended.out.count("skipped: step ") == len(lines)
    assert given.identity() == replace(given, config=settings.model_dump(mode="json")).identity()
