"""The ablation for real, tiny: labels, training, evaluation and report; started again it trains nothing."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cloc.ablation.rows import ROWS
from cloc.ablation.runner import run_ablation
from cloc.config import Config, parse
from tests.conftest import write_dataset

TOWER = {"width": 16, "layers": 1, "heads": 2}


def settings(folder: Path) -> Config:
    tree = {
        "data": {"processes": 1},
        "captioning": {"backend": "annotations"},
        "grounding": {"backend": "annotations"},
        "model": {
            "embed_dim": 16,
            "vision": {**TOWER, "image_size": 32, "patch_size": 8},
            "text": {**TOWER, "context_length": 16, "vocab_size": 540},
            "prompter": {"pool": "prompt", "spatial_bias": "box"},
        },
        "train": {"steps": 2, "batch_size": 8, "warmup_steps": 1, "precision": "float32"},
        "evaluation": {"pictures": 1},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
    }
    return parse(tree, source="test")


def test_rows_are_trained_compared_and_not_trained_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path / "data" / "train", 16, shard_size=8)
    write_dataset(tmp_path / "data" / "test", 8, seed=1)
    config, out = settings(tmp_path), tmp_path / "out"
    rows = [ROWS["cloc"], ROWS["no-vesl"]]
    table = run_ablation(config, rows=rows, seeds=[0], data=str(tmp_path / "data"), out=str(out))
    assert "3 differences to CLOC stand beside the paper's" in capfd.readouterr().out

    base, without = table
    assert [item.models[0].steps for item in table] == [2, 2]
    assert base.models[0].weights != without.models[0].weights
    assert set(without.differences) == {"i2t", "t2i", "region", "grounding"}
    body = json.loads((out / "ablation.json").read_text())
    assert body["labels"]["all"]["regions_per_image"] == 2.0
    assert body["labels"]["alt_text"]["regions_per_image"] < 2.0
    assert "| without VESL |" in (out / "ablation.md").read_text()
    jobs = {key: json.loads((out / "models" / f"{key}-seed0" / "job.json").read_text()) for key in ("cloc", "no-vesl")}
    assert jobs["no-vesl"]["config"]["train"]["alt_text_share"] == 1.0
    assert jobs["no-vesl"]["regions"] != jobs["cloc"]["regions"]

    again = run_ablation(config, rows=rows, seeds=[0], data=str(tmp_path / "data"), out=str(out))
    assert [item.models for item in again] == [item.models for item in table]
    client = MlflowClient(config.tracking.uri)
    runs = client.search_runs([client.get_experiment_by_name("cloc").experiment_id])
    first, second = (run for run in reversed(runs) if run.info.run_name == "ablation")
    children = [
        [run.info.run_name for run in reversed(runs) if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        for parent in (first, second)
    ]
    labelled = ["captioning", "grounding", "grounding"]
    assert children == [
        [*labelled, "pretraining cloc-seed0", "pretraining no-vesl-seed0", "evaluation"],
        [*labelled, "evaluation"],
    ]
    assert first.data.metrics["ablation/cloc/region"] == pytest.approx(base.mean("region") / 100)
