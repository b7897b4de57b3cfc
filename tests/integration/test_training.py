"""Training for real, tiny: through TorchX on two ranks, resumed after a kill, and equal on one rank and two."""

import itertools
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cloc.config import Config, parse
from cloc.errors import ConfigError, DataError, TrainingError
from cloc.model import factory
from cloc.stage import StageResult
from cloc.training import stage
from cloc.training.job import TrainingJob
from cloc.training.schedule import learning_rate
from tests.conftest import write_dataset
from tests.integration import training_runs as runs

TINY = {
    "model": runs.TINY["model"],
    "train": {
        "steps": 6,
        "batch_size": 8,
        "warmup_steps": 2,
        "learning_rate": 1e-3,
        "optimizer": "muon",
        "log_every": 1,
        "checkpoint_every": 2,
        "precision": "float32",
        "processes": 2,
    },
}


def config(**train) -> Config:
    return parse({**TINY, "train": {**TINY["train"], **train}}, source="test")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data") / "train", 24, shard_size=4)


def train(settings: Config, data: str, out: Path, **inputs) -> StageResult:
    given = stage.Inputs(data=data, captions=data, regions=data, **inputs)
    return stage.run(settings, inputs=given, outputs=stage.Outputs(model=str(out)))


@pytest.fixture(scope="module")
def trained(data: str, tmp_path_factory) -> tuple[Path, StageResult]:
    out = tmp_path_factory.mktemp("trained")
    return out, train(config(), data, out)


def test_two_ranks_train_through_torchx_and_leave_a_model(trained: tuple[Path, StageResult]) -> None:
    out, result = trained
    assert result.counts["steps"] == 6
    assert result.counts["samples"] == 48
    assert len(runs.curve(out)) == 6
    assert all(value > 0 for value in runs.curve(out, "loss/region"))
    summary = json.loads((out / "training.json").read_text())
    assert summary["processes"] == 2
    assert summary["cpu_seconds"] > 0
    model, processor = factory.load(out)
    assert model.encode_text(processor.tokenize(["a red box"])).shape == (1, 16)


def test_a_run_that_goes_on_from_a_checkpoint_ends_bitwise_equal(data: str, trained, tmp_path: Path) -> None:
    """Step 4's checkpoint in a fresh folder is all that a killed run leaves."""
    out, _ = trained
    (tmp_path / "checkpoints").mkdir()
    (out / "checkpoints" / "step-00000004").rename(tmp_path / "checkpoints" / "step-00000004")
    (tmp_path / "metrics.jsonl").write_text((out / "metrics.jsonl").read_text())
    train(config(workers=1), data, tmp_path)  # decoded by a process, which changes nothing
    runs.assert_same_weights(out, tmp_path)
    assert runs.curve(tmp_path) == runs.curve(out)


@pytest.mark.slow
def test_one_rank_two_and_four_give_the_same_losses_and_gradients(tmp_path: Path) -> None:
    """The same global batch on one rank, and split: value and gradient of every parameter, by every variant."""
    script = Path(__file__).with_name("ranks.py")
    for ranks in (1, 2, 4):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        done = subprocess.run(
            [*command, str(script), str(tmp_path / f"{ranks}.safetensors")],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    one = load_file(tmp_path / "1.safetensors")
    assert {name.split(".")[0] for name in one} == {"paper", "sigmoid"}
    assert one["sigmoid.grad.model.region_logit_bias"] != 0
    assert one["sigmoid.grad.model.prompter.point_type"].abs().sum() > 0
    for ranks in (2, 4):
        split = load_file(tmp_path / f"{ranks}.safetensors")
        assert one.keys() == split.keys()
        for name, value in one.items():
            torch.testing.assert_close(
                split[name], value, rtol=1e-3, atol=1e-5, msg=lambda text, at=f"{ranks} ranks, {name}": f"{at}: {text}"
            )


def test_clip_spends_the_compute_of_cloc(data: str, trained, tmp_path: Path) -> None:
    out, _ = trained
    clip = tmp_path / "clip"
    given = replace(TrainingJob.load(str(out)), objective="clip", steps=2, output=str(clip))
    runs.train_here(replace(given, tokenizer=f"{out}/tokenizer"))
    assert all(value == 0 for value in runs.curve(clip, "loss/region"))
    summary = json.loads((clip / "training.json").read_text())
    target = json.loads((out / "training.json").read_text())
    (clip / "training.json").write_text(json.dumps({**summary, "cpu_seconds": target["cpu_seconds"]}))
    settings = stage.Inputs(data, data, data, objective="clip", match_compute_of=str(out), step_cost_of=str(clip))
    assert stage._steps(config().train, settings) == 2
    with pytest.raises(ConfigError, match="was trained as 'cloc', not as 'clip'"):
        stage._steps(config().train, stage.Inputs(data, data, data, "clip", str(out), str(out)))


def test_other_labels_do_not_go_on_from_an_old_checkpoint(data: str, trained, tmp_path: Path) -> None:
    out, _ = trained
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "checkpoints").symlink_to(out / "checkpoints")
    other = shutil.copytree(data, tmp_path / "data")
    shutil.copy(other / "regions" / "00001.parquet", other / "regions" / "00000.parquet")
    with pytest.raises(TrainingError, match="belongs to a run with other settings or data: data was"):
        train(config(), str(other), tmp_path / "model")


def test_failures_are_one_line(data: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="24 images are fewer than a batch of 64") as caught:
        train(config(batch_size=64), data, tmp_path / "a")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="batch_size 9 is not divisible by 2 processes"):
        train(config(batch_size=9), data, tmp_path / "b")
    with pytest.raises(DataError, match="neither a data set nor a collection"):
        train(config(), str(tmp_path), tmp_path / "c")


def test_learning_rate_warms_up_and_decays_to_zero() -> None:
    rates = [learning_rate(step, peak=1.0, warmup=4, steps=20) for step in range(21)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[12] == pytest.approx(0.5)
    assert rates[20] == pytest.approx(0.0)
    assert all(a >= b for a, b in itertools.pairwise(rates[3:]))
