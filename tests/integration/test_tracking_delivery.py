"""What a stage records arrives, whatever a real MLflow server does: every step once, in order."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from cloc import tracking
from cloc.config.schema import TrackingConfig
from cloc.stage import StageResult
from tests.faulty_proxy import Fault, FaultyProxy
from tests.mlflow_server import MlflowServer, forget_surroundings

LOG_BATCH = "runs/log-batch"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with MlflowServer(tmp_path_factory.mktemp("mlflow")) as running:
        yield running


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_surroundings(monkeypatch, tmp_path)
    monkeypatch.setattr("cloc.tracking.outbox._INTERVAL", 0.2)


@pytest.fixture
def proxy(server: MlflowServer) -> Iterator[FaultyProxy]:
    """In front of the server: it can be away and come back within a test's patience."""
    with FaultyProxy(server.port) as running:
        yield running


@pytest.fixture
def client(server: MlflowServer) -> MlflowClient:
    return MlflowClient(server.uri)


def settings(proxy: FaultyProxy, name: str) -> TrackingConfig:
    return TrackingConfig(uri=proxy.endpoint, experiment=name)


def rows(steps: Sequence[int], *, first: int = 1_700_000_000_000) -> list[dict[str, float]]:
    made = ({"step": step, "timestamp": first + 300 * step, "loss/total": 1 / step} for step in steps)
    return [{**row, "samples": 8.0 * row["step"]} for row in made]


def write(path: Path, what: Sequence[dict[str, float]]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in what))
    return str(path)


def runs(client: MlflowClient, experiment: str) -> list[Any]:
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id], order_by=["attributes.start_time"])) if found else []


def curve(client: MlflowClient, run_id: str, name: str = "loss/total") -> list[tuple[int, float, int]]:
    return [(item.step, item.value, item.timestamp) for item in client.get_metric_history(run_id, name)]


def expected(what: Sequence[dict[str, float]]) -> list[tuple[int, float, int]]:
    return [(int(row["step"]), row["loss/total"], int(row["timestamp"])) for row in what]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def outbox_of(folder: Path) -> list[Path]:
    return sorted((folder / ".cloc" / "outbox").glob("*/"))


def test_a_server_that_is_away_at_the_start_and_comes_back(
    proxy: FaultyProxy, client: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pipeline's run, made at the start, and its stage's: both are made when it is back, child under parent."""
    config, curves = settings(proxy, "away at start"), rows(range(1, 41))
    proxy.die()
    with (
        tracking.pipeline_run(config, name="demo", settings={"a": 1}) as parent,
        tracking.stage_run(config, stage="pretraining", settings={"train": {"steps": 40}}) as run,
    ):
        assert run.run_id == ""
        proxy.revive()
        run.log_result(StageResult("pretraining", artifacts={"c": write(tmp_path / "metrics.jsonl", curves)}))
    first, second = runs(client, "away at start")
    assert (first.info.run_id, second.info.run_id) == (parent.run_id, run.run_id)
    assert (first.info.run_name, first.data.params) == ("demo", {"a": "1"})
    assert second.data.tags["mlflow.parentRunId"] == parent.run_id
    assert second.data.params == {"train.steps": "40"}
    assert {first.info.status, second.info.status} == {"FINISHED"}
    assert curve(client, run.run_id) == expected(curves)
    said = capsys.readouterr().err.splitlines()
    away = f"MLflow at {proxy.endpoint} takes no records (connection refused); they are kept and sent when it does"
    assert said.count(away) == 2  # the pipeline's run and the stage's
    assert f"MLflow at {proxy.endpoint} has all 40 rows" in said
    assert not outbox_of(tmp_path)


def test_a_server_that_stays_away_and_a_delivery_later(
    proxy: FaultyProxy, client: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, curves = settings(proxy, "away"), rows(range(1, 31))
    page = tmp_path / "index.html"
    page.write_text("<p>first</p>")
    proxy.die()
    started = time.monotonic()
    with tracking.stage_run(config, stage="validation", settings={"a": 1}) as run:
        artifacts = {"c": write(tmp_path / "metrics.jsonl", curves), "report": str(page)}
        run.log_result(StageResult("validation", metrics={"checks/passed": 1.0}, message="done", artifacts=artifacts))
    assert time.monotonic() - started < 60
    ended = int(time.time() * 1000)
    page.write_text("<p>of another run</p>")
    (kept,) = outbox_of(tmp_path)
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"MLflow at {proxy.endpoint} has 0 of 30 rows, the rest is kept in {kept}: `cloc runs deliver` sends it"
    )
    (told,) = tracking.deliver(config)
    assert (told.rows, told.left > 0, told.reason) == (0, True, "connection refused")
    proxy.revive()
    (told,) = tracking.deliver(config)
    assert (told.run, told.rows, told.left) == ("validation", 30, 0)
    assert str(told).startswith(f"MLflow at {proxy.endpoint} got ")
    assert tracking.deliver(config) == []
    (found,) = runs(client, "away")
    assert curve(client, found.info.run_id) == expected(curves)
    assert found.info.status == "FINISHED"
    assert found.info.end_time <= ended
    assert found.data.metrics["checks/passed"] == 1.0
    link = f"#/experiments/{found.info.experiment_id}/runs/{found.info.run_id}/artifacts/index.html"
    assert found.data.tags["mlflow.note.content"] == f"done\n\n[report]({link})"
    local = client.download_artifacts(found.info.run_id, "index.html", str(tmp_path))
    assert Path(local).read_text() == "<p>first</p>"
    assert not outbox_of(tmp_path)


def test_requests_that_were_taken_and_not_answered(proxy: FaultyProxy, client: MlflowClient, tmp_path: Path) -> None:
    """Of every kind of request that makes or logs something answers are lost; nothing stands twice."""
    config, curves = settings(proxy, "lost answers"), rows(range(1, 301))
    lost = [Fault("drop_answer", method="POST", target=target) for target in ("runs/create", LOG_BATCH, "runs/update")]
    lost.append(Fault("drop_answer", method="PUT", target="artifacts"))
    proxy.faults += lost
    with tracking.stage_run(config, stage="pretraining", settings={"a": 1}) as run:
        until(lambda: not any(fault.times for fault in lost if fault.target != "runs/update"))
        lost[1].times = 2
        run.log_result(StageResult("pretraining", artifacts={"c": write(tmp_path / "metrics.jsonl", curves)}))
    until(lambda: not any(item.left for item in tracking.deliver(config)))
    assert not any(fault.times for fault in lost)
    (found,) = runs(client, "lost answers")
    assert (found.info.status, found.data.params) == ("FINISHED", {"a": "1"})
    assert curve(client, found.info.run_id) == expected(curves)
    by_samples = curve(client, found.info.run_id, "by_samples/loss/total")
    assert [step for step, *_ in by_samples] == [8 * step for step in range(1, 301)]
    assert not outbox_of(tmp_path)


@pytest.mark.parametrize("status", [502, 503, 500, 429])
def test_a_server_in_trouble_is_away_and_no_mistake(
    proxy: FaultyProxy, client: MlflowClient, tmp_path: Path, status: int
) -> None:
    name = f"trouble {status}"
    proxy.faults.append(Fault("status", status=status, times=3, code="Busy"))
    with tracking.stage_run(settings(proxy, name), stage="captioning", settings={}) as run:
        run.log_metrics({"count/images": 7})
        time.sleep(1.5)
    (found,) = runs(client, name)
    assert (found.info.run_id, found.data.metrics) == (run.run_id, {"count/images": 7.0})


STAGE = """
import sys, time
from cloc import tracking
from cloc.config.schema import TrackingConfig
from cloc.training.watch.live import live_run
config = TrackingConfig(uri=sys.argv[1], experiment=sys.argv[2])
with tracking.stage_run(config, stage="pretraining", settings={"steps": 5}) as run:
    live = live_run()
    live._interval = 0.2
    for step in range(1, 100_000):
        live.log({"step": step, "timestamp": 1_700_000_000_000 + step, "loss/total": 1 / step, "samples": 8.0 * step})
        print(step, flush=True)
        time.sleep(0.02)
"""


def test_a_stage_that_is_killed_while_the_server_is_away(
    proxy: FaultyProxy, client: MlflowClient, tmp_path: Path
) -> None:
    """Steps that were said before the kill arrive with the start of the next stage; twice delivered is once."""
    config = settings(proxy, "killed")
    stage = subprocess.Popen(
        [sys.executable, "-c", STAGE, proxy.endpoint, "killed"], stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert stage.stdout
    said = 0
    try:
        for line in stage.stdout:
            said = int(line)
            first = next(iter(runs(client, "killed")), None) if said % 20 == 0 else None
            if first and len(curve(client, first.info.run_id)) > 10:
                break
        proxy.die()
        for line in stage.stdout:
            said = int(line)
            if said >= 300:
                break
    finally:
        os.kill(stage.pid, signal.SIGKILL)
        stage.wait(30)
    said = max([said, *(int(line) for line in stage.stdout.read().split())])
    assert len(outbox_of(tmp_path)) == 2  # the stage's and that of its training
    proxy.revive()
    with tracking.stage_run(config, stage="evaluation", settings={}):
        pass
    killed, after = runs(client, "killed")
    assert (killed.info.status, after.info.status) == ("KILLED", "FINISHED")
    assert killed.data.tags["cloc.failure"] == "the process ended without a word"
    steps = [item[0] for item in curve(client, killed.info.run_id)]
    assert steps == list(range(1, len(steps) + 1))
    assert said <= len(steps) <= said + 1
    assert not outbox_of(tmp_path)


def test_steps_that_training_wrote_anew_stand_once(proxy: FaultyProxy, client: MlflowClient, tmp_path: Path) -> None:
    """A training that was restarted from its checkpoint repeats steps at another time: the first of each stays."""
    with tracking.stage_run(settings(proxy, "anew"), stage="pretraining", settings={}) as run:
        run.log_rows(rows(range(1, 8)))
        again = rows(range(1, 6)) + rows(range(6, 11), first=1_800_000_000_000)
        again[6]["loss/total"] = 9.0
        run.log_result(StageResult("pretraining", artifacts={"c": write(tmp_path / "metrics.jsonl", again)}))
    assert curve(client, run.run_id) == expected(rows(range(1, 8)) + again[7:])


def test_a_server_that_is_killed_in_the_middle_of_a_stage(
    server: MlflowServer, client: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, curves = TrackingConfig(uri=server.uri, experiment="killed server"), rows(range(1, 61))
    with tracking.stage_run(config, stage="pretraining", settings={"a": 1}) as run:
        run.log_rows(curves[:20])
        server.kill()
        run.log_rows(curves[20:40])
        run.set_tag("said", "while it was dead")
        server.start()
        run.log_result(StageResult("pretraining", artifacts={"c": write(tmp_path / "metrics.jsonl", curves)}))
    assert curve(client, run.run_id) == expected(curves)
    found = client.get_run(run.run_id)
    assert (found.info.status, found.data.tags["said"]) == ("FINISHED", "while it was dead")
    assert "takes records again" in capsys.readouterr().err
    assert not outbox_of(tmp_path)
