"""Uploading, running, following and scheduling against a server over HTTP that checks every request."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from kfp.client import client as kfp_client

from cloc.errors import ConfigError
from pipelines import runs, schedules, tasks, upload
from pipelines.runs import RunFailed
from pipelines.server import Server, ServerError, connect
from pipelines.upload import Version
from tests.pipeline.fake_kfp import Kfp, Nodes, fake_kfp, look
from tests.pipeline.small_pipeline import compile_small

HANDLER = "root.exit-handler-1"
ALL = {"ingest": "SUCCEEDED", "captioning[0]": "SUCCEEDED", "captioning[1]": "SUCCEEDED", "validation": "SUCCEEDED"}
ALL |= {"pretraining": "SUCCEEDED", "outcome": "SUCCEEDED"}
ARGUMENTS = {"data": "s3://bucket/photos", "steps": 8}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kfp_client.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setattr(runs, "_POLL_SECONDS", 0.01)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_small(tmp_path_factory.mktemp("small"))


@pytest.fixture
def kfp() -> Iterator[Kfp]:
    with fake_kfp() as server:
        yield server


@pytest.fixture
def server(kfp: Kfp) -> Server:
    return connect(host=kfp.url, namespace=None, token=None)


def _start(server: Server, package: Path, **more: Any) -> Any:
    version = upload.upload(server, package)
    return runs.start(server, version, **{"name": "a run", "experiment": "cloc", "arguments": ARGUMENTS, **more})


def _tasks(server: Server, run_id: str) -> dict[str, tasks.Task]:
    run = runs.find(server, run_id)
    return {task.name: task for task in tasks.tasks_of(run, tasks.pipeline_of(server, run))}


# Upload


def test_upload_names_the_version(kfp: Kfp, server: Server, package: Path) -> None:
    made = upload.upload(server, package)
    assert made.new
    assert made.name.startswith(upload.version_prefix())
    assert kfp.versions[made.version_id].display_name == made.name
    assert kfp.versions[made.version_id].pipeline_spec == next(yaml.safe_load_all(package.read_text()))


def test_same_content_is_uploaded_once(kfp: Kfp, server: Server, package: Path) -> None:
    first = upload.upload(server, package)
    again = upload.upload(server, package)
    assert (again.version_id, again.new) == (first.version_id, False)
    assert len(kfp.asked("POST", "/upload_version")) == 1
    assert len(kfp.pipelines) == 1


def test_other_content_is_a_new_version(kfp: Kfp, server: Server, package: Path, tmp_path: Path) -> None:
    first = upload.upload(server, package)
    second = upload.upload(server, compile_small(tmp_path, image="registry.example/cloc:2"))
    assert second.new
    assert second.pipeline_id == first.pipeline_id
    assert second.name != first.name
    assert len(kfp.versions) == 2


def test_somebody_uploads_it_meanwhile(kfp: Kfp, server: Server, package: Path) -> None:
    kfp.race = True
    made = upload.upload(server, package)
    assert not made.new
    assert list(kfp.versions) == [made.version_id]


def test_version_prefix_tells_changed_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"rev-parse": "7de8406d", "status": ""}
    monkeypatch.setattr(upload, "git", lambda *arguments, folder: said[arguments[0]])
    assert upload.version_prefix() == f"{upload.cloc.__version__}-7de8406d"
    said["status"] = "M pipelines/compile.py"
    assert upload.version_prefix() == f"{upload.cloc.__version__}-7de8406d-dirty"
    said["rev-parse"] = ""
    assert upload.version_prefix() == f"{upload.cloc.__version__}-nogit"


def test_namespace_of_several_users(package: Path) -> None:
    with fake_kfp(multi_user=True) as kfp:
        server = connect(host=kfp.url, namespace="team", token=None)
        run = _start(server, package)
        assert {item.namespace for item in (*kfp.pipelines.values(), *kfp.experiments.values())} == {"team"}
        assert runs.find(server, "latest").run_id == run.run_id


# Runs


def test_run_is_of_the_version_with_its_parameters(kfp: Kfp, server: Server, package: Path) -> None:
    made = _start(server, package, service_account="cloc-pipeline")
    body = kfp.asked("POST", "/runs")[0]
    assert body["runtime_config"]["parameters"] == ARGUMENTS
    assert body["pipeline_version_reference"]["pipeline_version_id"] in kfp.versions
    assert body["service_account"] == "cloc-pipeline"
    assert kfp.experiments[kfp.runs[made.run_id].experiment_id].display_name == "cloc"


def test_experiment_is_made_once(kfp: Kfp, server: Server, package: Path) -> None:
    _start(server, package)
    _start(server, package)
    assert len(kfp.experiments) == 1
    assert len(kfp.runs) == 2


def test_refused_parameters_are_one_line(server: Server, package: Path) -> None:
    with pytest.raises(ServerError, match=r"refused: 400 Bad Request: parameter 'stepps' is unknown") as told:
        _start(server, package, arguments={"stepps": 3})
    assert "\n" not in str(told.value)


def test_wait_tells_each_task(kfp: Kfp, server: Server, package: Path) -> None:
    run = _start(server, package)
    kfp.script = [
        look("PENDING"),
        look("RUNNING", ingest="RUNNING"),
        look("RUNNING", ingest="RUNNING"),
        look("RUNNING", ingest="RUNNING", tries={"ingest": 2}),
        look(
            "RUNNING",
            ingest="SUCCEEDED",
            tries={"ingest": 2},
            **{"captioning[0]": "CACHED", "captioning[1]": "RUNNING"},
        ),
        look("SUCCEEDED", tries={"ingest": 2}, **ALL | {"captioning[0]": "CACHED"}),
    ]
    lines: list[str] = []
    assert runs.wait(server, run.run_id, say=lines.append).state == "SUCCEEDED"
    assert [line for line in lines if line.startswith("Data")] == [
        "Data: running",
        "Data: its pod failed, attempt 2",
        "Data: succeeded after 30 s",
    ]
    assert "Captioning[0]: nothing changed, taken from the cache" in lines
    assert lines.count("Captioning[1]: succeeded after 30 s") == 1
    assert lines[-1] == f"run {run.run_id} succeeded after 10.0 min"


def test_wait_ends_with_the_reason_and_code_of_the_task(kfp: Kfp, server: Server, package: Path) -> None:
    run = _start(server, package)
    kfp.logs = {
        f"system-container-impl:{HANDLER}.validation.executor": (
            "checked 31 things\nerror: validation: 1 of 31 checks failed\n"
            "F0101 00:00:00.000000 1 main.go:49] failed to execute component: exit status 4\n"
        )
    }
    kfp.script = [look("RUNNING"), look("FAILED", ingest="SUCCEEDED", validation="FAILED", outcome="SUCCEEDED")]
    lines: list[str] = []
    with pytest.raises(RunFailed) as told:
        runs.wait(server, run.run_id, say=lines.append)
    assert str(told.value) == (
        f"run {run.run_id} on {kfp.url} ended as FAILED: Validation (gate): validation: 1 of 31 checks failed"
    )
    assert told.value.exit_code == 4
    assert "Validation (gate): failed after 30 s" in lines
    assert "Pre-training: skipped" in lines


def test_failure_without_a_log(kfp: Kfp, server: Server, package: Path) -> None:
    run = _start(server, package)
    kfp.script = [look("FAILED", validation="FAILED")]
    with pytest.raises(RunFailed, match=r"Validation \(gate\) failed; .* kubectl logs -n kubeflow cloc-") as told:
        runs.wait(server, run.run_id, say=lambda line: None)
    assert told.value.exit_code == 1
    assert "\n" not in str(told.value)


def test_failure_of_no_task(kfp: Kfp, server: Server, package: Path) -> None:
    run = _start(server, package)
    kfp.script = [look("FAILED", error="quota exceeded: pods")]
    with pytest.raises(RunFailed, match=r"ended as FAILED: quota exceeded: pods"):
        runs.wait(server, run.run_id, say=lambda line: None)


def test_wait_bears_a_server_that_is_away_for_a_while(kfp: Kfp, server: Server, package: Path) -> None:
    run = _start(server, package)
    kfp.script, kfp.failing = [look("RUNNING", ingest="RUNNING"), look("SUCCEEDED", **ALL)], 4

    def away_again(line: str) -> None:
        kfp.failing = 4 if line == "Data: running" else kfp.failing

    assert runs.wait(server, run.run_id, say=away_again).state == "SUCCEEDED"
    kfp.failing = 100
    with pytest.raises(ServerError, match=rf"503 .*; the run goes on: {run.run_id}"):
        runs.wait(server, run.run_id, say=lambda line: None)


def test_interrupt_leaves_the_run(kfp: Kfp, server: Server, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _start(server, package)

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "time", SimpleNamespace(sleep=interrupt))
    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        runs.wait(server, run.run_id, say=lines.append)
    assert lines[-1].startswith(f"the run goes on: `cloc pipeline status {run.run_id}` shows it")
    assert not kfp.asked("POST", ":terminate")


def test_terminate(kfp: Kfp, server: Server, package: Path) -> None:
    run = _start(server, package)
    runs.terminate(server, run)
    assert kfp.runs[run.run_id].state == "CANCELING"
    kfp.script = [look("RUNNING", ingest="RUNNING")]
    with pytest.raises(RunFailed, match=r"ended as CANCELED"):
        runs.wait(server, run.run_id, say=lambda line: None)
    with pytest.raises(ConfigError, match=r"has ended as CANCELED; there is nothing to terminate"):
        runs.terminate(server, runs.find(server, run.run_id))


def test_find_a_run(server: Server, package: Path) -> None:
    first = _start(server, package, name="first")
    second = _start(server, package, name="second")
    for wanted in (first.run_id, first.run_id[:12], "first"):
        assert runs.find(server, wanted).run_id == first.run_id
    assert runs.find(server, "latest").run_id == second.run_id
    with pytest.raises(ConfigError, match=r"has no run 'third'"):
        runs.find(server, "third")
    with pytest.raises(ConfigError, match=r"has no run"):
        runs.find(server, "0" * 8 + first.run_id[8:])
    _start(server, package, name="first")
    with pytest.raises(ConfigError, match=r"2 runs are 'first'"):
        runs.find(server, "first")


def test_newest_runs_come_page_by_page(server: Server, package: Path) -> None:
    version = upload.upload(server, package)
    made = [
        runs.start(server, version, name=f"run {number}", experiment="cloc", arguments=ARGUMENTS)
        for number in range(25)
    ]
    runs.start(server, version, name="elsewhere", experiment="other", arguments=ARGUMENTS)
    found = runs.newest(server, limit=24, experiment="cloc")
    assert [run.run_id for run in found] == [run.run_id for run in reversed(made)][:24]
    assert runs.newest(server, limit=1)[0].display_name == "elsewhere"
    with pytest.raises(ConfigError, match=r"has no experiment 'third'"):
        runs.newest(server, limit=1, experiment="third")


# Tasks and logs


def test_node_ids_are_fnv() -> None:
    """Vectors of the hash, FNV-1a of 32 bits: "a", and "foobar" behind a workflow's name of nothing."""
    assert Nodes.id("a") == f"a-{0xE40C292C}"
    assert Nodes.id("foobar") == f"foobar-{0xBF9CF968}"


def test_tasks_of_a_run(kfp: Kfp, server: Server, package: Path) -> None:
    run = _start(server, package)
    states = {"ingest": "SUCCEEDED", "captioning[0]": "FAILED", "captioning[1]": "RUNNING", "validation": "SKIPPED"}
    kfp.script = [look("RUNNING", tries={"ingest": 2, "captioning[0]": 3}, **states)]
    found = _tasks(server, run.run_id)
    assert list(found)[-2:] == ["pretraining", "outcome"]
    assert {name: (task.state, task.retries) for name, task in found.items()} == {
        "ingest": ("SUCCEEDED", 1),
        "captioning[0]": ("FAILED", 2),
        "captioning[1]": ("RUNNING", 0),
        "validation": ("SKIPPED", 0),
        "pretraining": ("PENDING", 0),
        "outcome": ("PENDING", 0),
    }
    assert found["captioning[0]"].title == "Captioning[0]"
    assert found["ingest"].seconds == 30
    assert found["pretraining"].seconds is None
    assert found["captioning[1]"].finished is None
    assert json.loads(json.dumps(found["ingest"].to_json()))["retries"] == 1


def test_task_that_could_not_be_made_ready(kfp: Kfp, server: Server, package: Path) -> None:
    run = _start(server, package)
    kfp.logs = {f"system-container-driver:{HANDLER}.condition-4.pretraining-driver": "secret cloc-s3 not found\n"}
    kfp.script = [look("FAILED", pretraining="DRIVER")]
    task = _tasks(server, run.run_id)["pretraining"]
    assert task.state == "FAILED"
    assert tasks.read_log(server, run.run_id, task) == "secret cloc-s3 not found\n"


def test_run_of_somebody_elses_spec(kfp: Kfp, server: Server, package: Path) -> None:
    run = kfp.new_run("theirs", next(yaml.safe_load_all(package.read_text())))
    kfp.script = [look("RUNNING", ingest="RUNNING")]
    assert _tasks(server, run.run_id)["ingest"].state == "RUNNING"


@pytest.mark.parametrize("source", ["api", "ui"])
def test_log_of_the_last_attempt(kfp: Kfp, server: Server, package: Path, source: str) -> None:
    run = _start(server, package)
    kfp.log_from = source
    part = f"{HANDLER}.for-loop-3.iteration-iterations(1:1).iteration-item.captioning.executor"
    kfp.logs = {f"retry-system-container-impl:{part}({number})": f"attempt {number}\n" for number in range(2)}
    kfp.script = [
        look("RUNNING", tries={"captioning[1]": 2}, **{"captioning[0]": "RUNNING", "captioning[1]": "FAILED"})
    ]
    found = _tasks(server, run.run_id)
    assert tasks.read_log(server, run.run_id, found["captioning[1]"]) == "attempt 1\n"
    reason = r"\(Failed to read logs: pod \S+ not found\)" if source == "api" else ""
    with pytest.raises(ServerError, match=rf"no log of Captioning\[0\] {reason}.* kubectl logs -n kubeflow cloc-"):
        tasks.read_log(server, run.run_id, found["captioning[0]"])
    with pytest.raises(ServerError, match=r"Validation \(gate\) has not started: it has no log"):
        tasks.read_log(server, run.run_id, found["validation"])


def test_reason_in_a_log() -> None:
    assert tasks.failure_in("a\nerror: no GPU\nexit status 5\n") == ("no GPU", 5)
    assert tasks.failure_in("a\nKilled\n\n") == ("Killed", 1)
    assert tasks.failure_in("") == ("it said nothing", 1)


# Schedules


def _schedule(server: Server, version: Version, trigger: Any, **more: Any) -> Any:
    given = {"name": "nightly", "experiment": "cloc", "catchup": False, "arguments": ARGUMENTS, **more}
    return schedules.create(server, version, trigger=trigger, **given)


def test_schedule(kfp: Kfp, server: Server, package: Path) -> None:
    version = upload.upload(server, package)
    made = _schedule(server, version, schedules.cron("0 3 * * *"))
    body = kfp.asked("POST", "/recurringruns")[0]
    assert body["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * *"}}
    assert (body["mode"], body["max_concurrency"], body["no_catchup"]) == ("ENABLE", "1", True)
    assert body["runtime_config"]["parameters"] == ARGUMENTS
    schedules.disable(server, schedules.find(server, "nightly"))
    assert schedules.find(server, made.recurring_run_id[:8]).status == "DISABLED"
    schedules.enable(server, made)
    assert schedules.find(server, "nightly").status == "ENABLED"
    with pytest.raises(ConfigError, match=r"there is a schedule 'nightly'"):
        _schedule(server, version, schedules.every("6h"))
    schedules.delete(server, made)
    with pytest.raises(ConfigError, match=r"has no schedule 'nightly'"):
        schedules.find(server, "nightly")


def test_schedule_by_interval_that_catches_up(kfp: Kfp, server: Server, package: Path) -> None:
    made = _schedule(server, upload.upload(server, package), schedules.every("36h"), catchup=True)
    body = kfp.asked("POST", "/recurringruns")[0]
    assert body["trigger"] == {"periodic_schedule": {"interval_second": "129600"}}
    assert body["no_catchup"] is False
    assert schedules.trigger_text(made) == "every 36h"


@pytest.mark.parametrize("text", ["", "3", "0 3 * *", "0 3 * * * * *", "0 3 * * $(x)"])
def test_no_cron(text: str) -> None:
    with pytest.raises(ConfigError, match=r"write five fields"):
        schedules.cron(text)


@pytest.mark.parametrize("text", ["", "6", "0h", "-1h", "1.5h", "1y"])
def test_no_interval(text: str) -> None:
    with pytest.raises(ConfigError, match=r"write a number and a unit"):
        schedules.every(text)
