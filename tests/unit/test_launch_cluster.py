"""A job on Kubernetes, from the call that makes it to the verdict, against a fake API server: no replica's failure is
overlooked."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloc.config import parse
from cloc.config.schema import TrainConfig
from cloc.errors import ConfigError, DataError, TrainingError
from cloc.training.launch import logs, run_app, training_app, wait
from cloc.training.preemption import PREEMPTED, Stopped
from tests.fake_cluster import Cluster, FakePod, fake_cluster

DONE = {"phase": "Succeeded", "code": 0}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setitem(wait.POLL_SECONDS, "kubernetes", 0.05)
    monkeypatch.setattr(logs, "_AGAIN_SECONDS", 0.05)
    with fake_cluster() as found:
        yield found


def settings(**kubernetes: object) -> TrainConfig:
    train = {"scheduler": "kubernetes", "storage": "s3://bucket/runs", "nodes": 2, "processes": 8, "batch_size": 64}
    return parse({"train": {**train, "kubernetes": {"image": "cloc:1", **kubernetes}}}, source="test").train


def launch(cluster: Cluster, tmp_path: Path, config: TrainConfig | None = None) -> None:
    config = config or settings()
    app = training_app("s3://bucket/runs/cloc-1", config, module="cloc.training.trainer", environment={})
    run_app(app, config, log_dir=tmp_path, api=cluster.client())


def test_every_replicas_lines_and_every_state_are_shown(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Two threads that follow lines look at the job, too: each phase is there for several looks.
    cluster.phases = [*[""] * 6, *["Running"] * 12, "Completed"]
    cluster.pods = {number: FakePod(**DONE, lines=(f"[rank {8 * number}] hello",)) for number in (0, 1)}
    launch(cluster, tmp_path)
    out = capsys.readouterr().out.splitlines()
    assert out.count("[rank 0] hello") == 1
    assert out.count("[rank 8] hello") == 1
    states = [line for line in out if line.startswith("training job is")]
    assert states == ["training job is pending", "training job is running"][-len(states) :]
    assert states
    (job,) = cluster.jobs.values()
    assert job["spec"]["minAvailable"] == 2


def test_completed_with_pods_in_error_is_a_failure(cluster: Cluster, tmp_path: Path) -> None:
    """Seen of Volcano: the job is Completed, and all its pods are in Error."""
    cluster.counts = False
    cluster.pods = {number: FakePod("Failed", 1, ("error: rank 3 on h was killed by SIGKILL",)) for number in (0, 1)}
    with pytest.raises(TrainingError, match=r"^rank 3 on h was killed by SIGKILL$"):
        launch(cluster, tmp_path)


def test_one_failed_pod_of_many_is_a_failure_and_named(cluster: Cluster, tmp_path: Path) -> None:
    cluster.counts = False
    cluster.pods = {0: FakePod(**DONE), 1: FakePod("Failed", 137, reason="OOMKilled")}
    with pytest.raises(
        TrainingError, match=r"pod cloc-pretrain-\w+-trainer-1-0 ended with exit code 137 \(OOMKilled\)"
    ):
        launch(cluster, tmp_path)


def test_a_failed_replica_counts_where_its_pod_is_gone(cluster: Cluster, tmp_path: Path) -> None:
    cluster.pods = {0: FakePod("Succeeded", 0), 1: FakePod("Failed", None)}
    cluster.pods[1].phase = "Failed"
    original = cluster.named
    cluster.named = lambda: {name: pod for name, pod in original().items() if pod.phase != "Failed"}  # type: ignore[method-assign]  # pods go, the status stays
    with pytest.raises(TrainingError, match="replica 1 failed"):
        launch(cluster, tmp_path)


def test_the_error_of_a_rank_keeps_its_class(cluster: Cluster, tmp_path: Path) -> None:
    cluster.phases = ["Running", "Terminated"]
    cluster.pods = {
        0: FakePod("Failed", 1, ("error: rank 0 on h crashed with exit code 1; its traceback stands above",)),
        1: FakePod("Failed", 3, ("error: s3://bucket/data: there is no manifest.json",)),
    }
    with pytest.raises(DataError, match=r"^s3://bucket/data: there is no manifest.json$"):
        launch(cluster, tmp_path)


def test_sigterm_aborts_the_job_and_waits_for_its_pods(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.phases = ["Running"]
    cluster.pods = {number: FakePod() for number in (0, 1)}

    def story() -> None:
        while not cluster.jobs:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)
        while not cluster.aborted:
            time.sleep(0.02)
        time.sleep(0.3)  # Aborted already, and the ranks still save
        cluster.pods = {number: FakePod("Failed", PREEMPTED, ("saved",)) for number in (0, 1)}

    teller = threading.Thread(target=story, daemon=True)
    teller.start()
    with pytest.raises(Stopped, match="told to stop by SIGTERM: its ranks saved"):
        launch(cluster, tmp_path)
    teller.join()
    assert cluster.aborted
    assert capsys.readouterr().out.count("saved\n") == 2


def test_a_refused_job_is_one_line(cluster: Cluster, tmp_path: Path) -> None:
    cluster.refusal = 403
    with pytest.raises(TrainingError, match=r"kubernetes did not take the job \(403 Forbidden\)"):
        launch(cluster, tmp_path)


def test_no_cluster_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    config = settings()
    with pytest.raises(ConfigError, match=r"there is no cluster \(Invalid kube-config file"):
        run_app(
            training_app("s3://b/r", config, module="cloc.training.trainer", environment={}), config, log_dir=tmp_path
        )


def test_an_api_that_is_away_for_a_while_is_waited_for(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.pods = {number: FakePod(**DONE) for number in (0, 1)}
    looks = iter([TimeoutError("away"), TimeoutError("away")])
    real = wait._status

    def status(*arguments: object) -> object:
        if (error := next(looks, None)) is not None:
            raise error
        return real(*arguments)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(wait, "_status", status)
    launch(cluster, tmp_path)
    monkeypatch.setattr(wait, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(wait, "_status", lambda *_: (_ for _ in ()).throw(TimeoutError("away")))
    cluster.jobs.clear()
    with pytest.raises(
        TrainingError, match=r"kubernetes has not answered for 0 s \(away\); the job .* goes on without"
    ):
        launch(cluster, tmp_path)
