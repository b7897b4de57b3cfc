"""Runs as MLflow records them, on a real SQLite store."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cloc import tracking
from cloc.config.schema import TrackingConfig
from cloc.errors import ConfigError, GateFailed
from cloc.stage import StageResult
from cloc.training.watch.live import live_run


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database whose tables stand: making them takes a while."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def config(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> TrackingConfig:
    for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "CLOC_RUN_KEY", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy2(empty_store, tmp_path / "mlflow.db")
    return TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="test")


@pytest.fixture
def client(config: TrackingConfig) -> MlflowClient:
    return MlflowClient(config.uri)


def test_stages_are_children_of_the_pipeline(config: TrackingConfig, client: MlflowClient) -> None:
    settings = {"train": {"steps": 3, "note": "x" * 900}}
    with tracking.pipeline_run(config, name="demo", settings=settings) as parent:
        for stage in ("captioning", "grounding"):
            with tracking.stage_run(config, stage=stage, settings=settings) as run:
                run.log_result(StageResult(stage, metrics={"a/b": 0.5}, counts={"images": 7}, message="done"))
                child = client.get_run(run.run_id)
                assert child.data.tags["mlflow.parentRunId"] == parent.run_id
                assert child.data.metrics == {"a/b": 0.5, "count/images": 7.0}
                assert child.data.params["train.steps"] == "3"
    found = client.get_run(parent.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.tags["cloc.kind"] == "pipeline"
    assert "MLFLOW_RUN_ID" not in os.environ


def test_stages_with_a_common_key_share_a_parent(
    config: TrackingConfig, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOC_RUN_KEY", "kfp-run-1")
    parents = []
    for stage in ("captioning", "grounding"):
        with tracking.stage_run(config, stage=stage, settings={}) as run:
            parents.append(client.get_run(run.run_id).data.tags["mlflow.parentRunId"])
    assert parents[0] == parents[1]
    assert client.get_run(parents[0]).data.tags["cloc.run_key"] == "kfp-run-1"


def test_a_failed_stage_says_why(config: TrackingConfig, client: MlflowClient) -> None:
    def fail() -> None:
        with tracking.stage_run(config, stage="validation", settings={}) as run:
            run.fail("3 of 31 checks failed")
            raise GateFailed("3 of 31 checks failed")

    with pytest.raises(GateFailed):
        fail()
    (found,) = client.search_runs([client.get_experiment_by_name("test").experiment_id])
    assert found.info.status == "FAILED"
    assert found.data.tags["cloc.failure"] == "3 of 31 checks failed"


def test_pages_are_artifacts_that_the_description_links(
    config: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    page = tmp_path / "index.html"
    page.write_text("<html></html>")
    with tracking.stage_run(config, stage="validation", settings={}) as run:
        run.log_result(
            StageResult("validation", message="48 checks passed", artifacts={"validation report": str(page)})
        )
    found = client.get_run(run.run_id)
    link = f"#/experiments/{found.info.experiment_id}/runs/{run.run_id}/artifacts/index.html"
    assert found.data.tags["mlflow.note.content"] == f"48 checks passed\n\n[validation report]({link})"
    assert "index.html" in [item.path for item in client.list_artifacts(run.run_id)]


def test_folders_of_figures_and_tables_are_kept(config: TrackingConfig, client: MlflowClient, tmp_path: Path) -> None:
    figures, tables, model = (tmp_path / name for name in ("figures", "tables", "model"))
    for folder in (figures, tables, model / "logs"):
        folder.mkdir(parents=True)
    (figures / "headline.png").write_bytes(b"\x89PNG")
    (tables / "grounding.csv").write_text("model,acc@0.5\nCLOC,0.72\n")
    (tables / "grounding.json").write_text(json.dumps({"columns": ["model", "acc@0.5"], "data": [["CLOC", 0.72]]}))
    (model / "config.json").write_text("{}")
    with tracking.stage_run(config, stage="evaluation", settings={}) as run:
        folders = {"figures": str(figures), "tables": str(tables), "model": str(model)}
        run.log_result(StageResult("evaluation", artifacts=folders))
    assert [item.path for item in client.list_artifacts(run.run_id, "figures")] == ["figures/headline.png"]
    assert [item.path for item in client.list_artifacts(run.run_id, "tables")] == [
        "tables/grounding.csv",
        "tables/grounding.json",
    ]
    assert not client.list_artifacts(run.run_id, "model")
    assert client.load_table(client.get_run(run.run_id).info.experiment_id, "tables/grounding.json", [run.run_id])[
        "acc@0.5"
    ].tolist() == [0.72]


def test_curves_and_data_sets(config: TrackingConfig, client: MlflowClient, tmp_path: Path, make_dataset) -> None:
    data = make_dataset(tmp_path / "data", 4)
    curves = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "seconds": 1.0, "loss/total": 3.0 - step} for step in (1, 2)]
    curves.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with tracking.stage_run(config, stage="registration", settings={}) as run:
        read = {"data": data}
        run.log_inputs(read, tracking.data_sets(read, splits=["train"], context="training"))
        run.log_result(StageResult("registration", artifacts={"curves": str(curves)}))
    history = client.get_metric_history(run.run_id, "loss/total")
    assert [(item.step, item.value) for item in history] == [(1, 2.0), (2, 1.0)]
    assert client.get_run(run.run_id).inputs.dataset_inputs[0].dataset.name.endswith("/data")


def test_a_store_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/file/mlflow.db")
    with (
        pytest.raises(ConfigError, match=r"cannot be used .* set tracking\.uri") as caught,
        tracking.stage_run(config, stage="captioning", settings={}),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_rows_of_a_stage_are_logged_while_it_runs_and_not_again(
    config: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    """Live by the variables that the stage's processes see; its end adds what is missing."""
    rows = [{"step": step, "seconds": 1.0, "loss/total": 3.0 - step, "samples": 8.0 * step} for step in (1, 2, 3)]
    curves = tmp_path / "metrics.jsonl"
    curves.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with tracking.stage_run(config, stage="pretraining", settings={}) as run:
        live = live_run()
        assert live is not None
        for row in rows[:2]:
            live.log(row)
        end = time.monotonic() + 120
        while not live._connected:  # mlflow is imported
            assert time.monotonic() < end
            time.sleep(0.01)
        live.close(patience=60)
        assert live.cpu_seconds > 0
        assert [item.step for item in client.get_metric_history(run.run_id, "loss/total")] == [1, 2]
        result = StageResult(
            "pretraining", metrics={"loss/total": 0.0, "wall_seconds": 5.0}, artifacts={"c": str(curves)}
        )
        run.log_result(result)
    assert tracking.STAGE_RUN not in os.environ
    points = [(item.step, item.value) for item in client.get_metric_history(run.run_id, "loss/total")]
    assert points == [(1, 2.0), (2, 1.0), (3, 0.0)]
    by_samples = client.get_metric_history(run.run_id, "by_samples/loss/total")
    assert [(item.step, item.value) for item in by_samples] == [(8, 2.0), (16, 1.0), (24, 0.0)]
    assert [item.step for item in client.get_metric_history(run.run_id, "wall_seconds")] == [0]
    assert client.get_run(run.run_id).data.metrics.keys() == {
        "loss/total",
        "by_samples/loss/total",
        "samples",
        "wall_seconds",
    }


def test_more_rows_than_one_request_takes(config: TrackingConfig, client: MlflowClient) -> None:
    rows = [{"step": step, "samples": float(step), **{f"loss/{name}": 1.0 for name in range(40)}} for step in range(30)]
    assert all(len(batch) * 81 <= 1000 for batch in tracking.row_batches(rows))
    with tracking.stage_run(config, stage="pretraining", settings={}) as run:
        run.log_rows(rows)
    for name in ("loss/0", "loss/39", "by_samples/loss/39", "samples"):
        assert [item.step for item in client.get_metric_history(run.run_id, name)] == list(range(30))
