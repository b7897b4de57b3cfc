"""`cloc pipeline` from the command line against a server over HTTP: what it prints, and its exit codes."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from kfp.client import client as kfp_client

from cloc import cli
from pipelines import runs, submit
from pipelines.compile import compile_pipeline
from pipelines.upload import version_prefix
from tests.pipeline import toy
from tests.pipeline.fake_kfp import Kfp, fake_kfp, look
from tests.pipeline.small_pipeline import compile_small

Run = Callable[..., tuple[int, str, str]]
SETTINGS = [part for item in toy.overrides() for part in ("-S", item)]


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kfp]:
    with fake_kfp() as server:
        monkeypatch.setenv("KFP_ENDPOINT", server.url)
        yield server


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """`cloc pipeline ...`: exit code, stdout, stderr."""
    monkeypatch.setattr(kfp_client.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setattr(runs, "_POLL_SECONDS", 0.01)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cloc", "pipeline", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, told.out, told.err

    return call


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small pipeline in place of ours, which takes none of the settings."""

    def compile_it(out: Path, *, image: str = "") -> None:
        compile_small(out.parent, image=image or "cloc:1").rename(out)

    monkeypatch.setattr(submit, "compile_pipeline", compile_it)
    monkeypatch.setattr(submit, "arguments", lambda config: {"steps": config.train.steps})


def _submit(run: Run, *more: str) -> tuple[int, str, str]:
    return run("submit", "--preset", "demo", "--data", "s3://bucket/photos", *SETTINGS, *more)


def test_our_pipeline_is_submitted_with_these_settings(kfp: Kfp, run: Run) -> None:
    code, out, err = _submit(run, "--image", "registry.example/cloc-python:1", "-P", "gpus=2", "--name", "mine")
    assert (code, err) == (0, "")
    assert "uploaded" in out
    assert "started run 'mine'" in out
    body = kfp.asked("POST", "/runs")[0]
    values = body["runtime_config"]["parameters"]
    assert (values["data"], values["training_steps"], values["gpus"]) == ("s3://bucket/photos", 4, 2)
    assert "train.log_every=1" in values["other_settings"]
    spec = json.dumps(kfp.versions[body["pipeline_version_reference"]["pipeline_version_id"]].pipeline_spec)
    assert "registry.example/cloc-python:1" in spec
    assert '"image": "cloc-python:' not in spec


@pytest.mark.usefixtures("small")
def test_second_submit_uploads_nothing(kfp: Kfp, run: Run) -> None:
    _submit(run)
    code, out, _ = _submit(run)
    assert code == 0
    assert "the server has it" in out
    assert len(kfp.asked("POST", "/upload_version")) == 1
    assert len(kfp.runs) == 2


@pytest.mark.usefixtures("small")
def test_json_alone_on_stdout(kfp: Kfp, run: Run) -> None:
    kfp.script = [look("RUNNING", ingest="RUNNING"), look("SUCCEEDED", ingest="SUCCEEDED")]
    code, out, err = _submit(run, "--wait", "--json")
    told = json.loads(out)
    assert (code, told["state"]) == (0, "SUCCEEDED")
    assert told["url"] == f"{kfp.url}/#/runs/details/{told['run']}"
    assert "Data: succeeded" in err


@pytest.mark.usefixtures("small")
def test_failed_run_gives_its_reason_and_code(kfp: Kfp, run: Run) -> None:
    log = "error: validation: 1 of 31 checks failed\nfailed to execute component: exit status 4\n"
    kfp.logs = {"system-container-impl:root.exit-handler-1.validation.executor": log}
    kfp.script = [look("FAILED", validation="FAILED")]
    code, out, err = _submit(run, "--wait", "--json")
    assert code == 4
    assert err.splitlines()[-1].startswith("error: run ")
    assert err.splitlines()[-1].endswith("Validation (gate): validation: 1 of 31 checks failed")
    assert json.loads(out)["state"] == "FAILED"


@pytest.mark.usefixtures("small")
def test_interrupted_wait(kfp: Kfp, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "time", SimpleNamespace(sleep=interrupt))
    code, out, err = _submit(run, "--wait")
    assert code == 130
    assert "the run goes on" in out
    assert "interrupted" in err
    assert next(iter(kfp.runs.values())).state == "PENDING"


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ("stepps=3", "the pipeline has no parameter 'stepps'; there are: data, steps"),
        ("steps", "write it as NAME=VALUE"),
        ("steps=many", "parameter 'steps' is a whole number, not 'many'"),
        ("steps=1.5", "parameter 'steps' is a whole number, not 1.5"),
    ],
)
def test_wrong_parameter_starts_nothing(kfp: Kfp, run: Run, item: str, reason: str) -> None:
    code, _, err = _submit(run, "-P", item)
    assert code == 2
    assert reason in err
    assert len(err.splitlines()) == 1
    assert not kfp.versions
    assert not kfp.runs


@pytest.mark.usefixtures("small")
def test_schedules(kfp: Kfp, run: Run) -> None:
    create = ("schedule", "create", "--preset", "demo", "--data", "s3://bucket/photos")
    code, out, _ = run(*create, "--name", "nightly", "--cron", "0 3 * * *")
    assert code == 0
    assert "each run will label all data" in out
    assert "scheduled 'nightly'" in out
    code, out, _ = run(*create, "--name", "weekly", "--every", "1w", "--catchup", "--json")
    assert json.loads(out)["catchup"] is True
    assert run("schedule", "disable", "weekly")[0] == 0
    found = {item["name"]: item for item in json.loads(run("schedule", "list", "--json")[1])}
    assert (found["nightly"]["state"], found["nightly"]["when"]) == ("ENABLED", "cron 0 0 3 * * *")
    assert (found["weekly"]["state"], found["weekly"]["when"]) == ("DISABLED", "every 1w")
    assert run("schedule", "enable", "weekly")[0] == 0
    assert run("schedule", "delete", "nightly")[0] == 0
    header, *rows = run("schedule", "list")[1].splitlines()
    assert header.split("\t") == ["Schedule", "Name", "State", "When"]
    assert [row.split("\t")[1:] for row in rows] == [["weekly", "ENABLED", "every 1w"]]
    assert len(kfp.versions) == 1


def test_schedule_needs_a_time_and_data(kfp: Kfp, run: Run) -> None:
    create = ("schedule", "create", "--preset", "demo")
    for more, reason in (
        (("--data", "d"), "give --cron or --every"),
        (("--data", "d", "--cron", "0 3 * * *", "--every", "1d"), "give --cron or --every"),
        (("--every", "1d"), "give --data"),
    ):
        code, _, err = run(*create, *more)
        assert code == 2
        assert reason in err
    assert not kfp.schedules


@pytest.mark.usefixtures("small")
def test_status(kfp: Kfp, run: Run) -> None:
    _submit(run, "--name", "mine")
    header, row = run("status")[1].splitlines()
    assert header.split("\t") == ["Run", "Name", "State", "Time"]
    assert row.split("\t")[1:3] == ["mine", "PENDING"]
    assert json.loads(run("status", "--json")[1])[0]["name"] == "mine"
    kfp.script = [look("SUCCEEDED", tries={"ingest": 3}, ingest="SUCCEEDED", **{"captioning[0]": "CACHED"})]
    run_id = next(iter(kfp.runs))
    lines = run("status", run_id)[1].splitlines()
    assert lines[0].startswith(f"mine ({run_id}): SUCCEEDED, 10.0 min; {kfp.url}/#/runs/details/")
    assert "Data\tSUCCEEDED\t30 s\t2" in lines
    assert "Captioning[0]\tSUCCEEDED (cache)\t30 s\t0" in lines
    assert "Pre-training\tSKIPPED\t-\t0" in lines
    told = json.loads(run("status", run_id, "--json")[1])
    assert {task["name"]: task["retries"] for task in told["tasks"]}["ingest"] == 2


@pytest.mark.usefixtures("small")
def test_logs(kfp: Kfp, run: Run) -> None:
    _submit(run, "--name", "mine")
    code, _, err = run("logs", "mine")
    assert code == 2
    assert "no task of run" in err
    kfp.logs = {
        "retry-system-container-impl:root.exit-handler-1.ingest.executor(0)": "40 images\n",
        "system-container-impl:root.exit-handler-1.validation.executor": "error: too few\n",
    }
    kfp.script = [look("RUNNING", ingest="SUCCEEDED", validation="RUNNING")]
    run_id = next(iter(kfp.runs))
    assert run("logs", run_id)[1] == "== Data (ingest)\n40 images\n== Validation (gate) (validation)\nerror: too few\n"
    kfp.script = [look("FAILED", ingest="SUCCEEDED", validation="FAILED")]
    assert run("logs", run_id)[1] == "error: too few\n"
    assert run("logs", run_id, "ingest")[1] == "40 images\n"
    assert run("logs", run_id, "Data")[1] == "40 images\n"
    code, _, err = run("logs", run_id, "grounding")
    assert code == 2
    assert "has no task 'grounding'; there are: " in err


@pytest.mark.usefixtures("small")
def test_terminate_and_ui(kfp: Kfp, run: Run) -> None:
    code, _, err = run("ui")
    assert code == 2
    assert "`cloc pipeline submit` brings it" in err
    _submit(run)
    run_id = next(iter(kfp.runs))
    assert run("terminate", "latest")[0] == 0
    assert kfp.runs[run_id].state == "CANCELING"
    assert run("ui", "latest")[1] == f"{kfp.url}/#/runs/details/{run_id}\n"
    assert run("ui")[1] == f"{kfp.url}/#/pipelines/details/{next(iter(kfp.pipelines))}\n"


def test_server_that_refuses_is_one_line(kfp: Kfp, run: Run) -> None:
    kfp.token = "secret"
    for verb in (("status",), ("ui",), ("schedule", "list"), ("terminate", "latest"), ("logs", "latest")):
        code, out, err = run(*verb)
        assert (code, out) == (1, "")
        assert err.startswith("error: the Kubeflow server ")
        assert len(err.splitlines()) == 1
    assert run("status", "--token", "secret")[0] == 0


@pytest.mark.parametrize(
    "verb",
    [
        ["compile"],
        ["validate"],
        ["submit"],
        ["schedule", "create"],
        ["schedule", "list"],
        ["schedule", "enable"],
        ["schedule", "disable"],
        ["schedule", "delete"],
        ["status"],
        ["logs"],
        ["terminate"],
        ["ui"],
    ],
)
def test_help_has_an_example(run: Run, verb: list[str]) -> None:
    code, out, _ = run(*verb, "--help")
    assert code == 0
    assert f"cloc pipeline {' '.join(verb)}" in out.partition("Usage:")[2].partition("\n")[2]


# Compile and validate


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("compiled") / "cloc.yaml"
    compile_pipeline(path, image="registry.example/cloc-python@sha256:00")
    return path.read_text()


def test_compile_and_validate(run: Run, tmp_path: Path) -> None:
    out = str(tmp_path / "deep" / "cloc.yaml")
    assert run("compile", "--out", out, "--image", "registry.example/cloc:1")[:2] == (0, f"wrote {out}\n")
    code, told, _ = run("validate", out, "--preset", "b16")
    assert code == 0
    executors = next(yaml.safe_load_all(Path(out).read_text()))["deploymentSpec"]["executors"]
    assert told.startswith(f"{out}: valid; {len(executors)} tasks, ")
    assert told.endswith("image registry.example/cloc:1\n")


def _replaced(before: str, after: str, *, times: int = -1) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert before in text
        return text.replace(before, after, times)

    return change


def _of_training_steps(before: str, after: str) -> Callable[[str], str]:
    """Changes the pipeline's own parameter, which stands behind those of its tasks."""

    def change(text: str) -> str:
        own = text.rindex("training_steps:")
        return text[:own] + _replaced(before, after, times=1)(text[own:])

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_replaced("schemaVersion:", "schemaVersions:"), "no pipeline by KFP's schema: .*schemaVersions"),
        (_replaced("\nplatforms:", "\nplatform:"), "second document is no platform by KFP's schema: .*platform"),
        (_replaced("secretAsEnv:", "secretsAsEnv:", times=1), "asks of Kubernetes is not by KFP's schema"),
        (_replaced("\n        exec-ingest:", "\n        exec-ingests:"), "executor 'exec-ingests', which the pipeline"),
        (_replaced("image: registry", "image: mirror", times=1), "tasks are of different images: mirror"),
        (_replaced("      training_steps:", "      steps:"), "parameter 'training_steps' is missing"),
        (
            _of_training_steps("NUMBER_INTEGER", "STRING"),
            "parameter 'training_steps' is a text, but the setting train.steps is a whole number",
        ),
        (_of_training_steps("defaultValue: ", "defaultValue: -"), "the defaults are no settings: .*train.steps"),
        (lambda text: "a: [", "is no YAML"),
        (lambda text: "", "it holds 0 documents"),
        (lambda text: "a name", "it holds no mapping"),
        (lambda text: text + "\n---\n{}\n", "it holds 3 documents"),
    ],
)
def test_what_is_wrong_is_one_line(
    run: Run, tmp_path: Path, compiled: str, change: Callable[[str], str], reason: str
) -> None:
    path = tmp_path / "cloc.yaml"
    path.write_text(change(compiled))
    code, _, err = run("validate", str(path), "--preset", "demo")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert err.startswith(f"error: {path}")
    assert re.search(reason, err)


def test_nothing_to_validate(run: Run, tmp_path: Path) -> None:
    code, _, err = run("validate", str(tmp_path / "none.yaml"), "--preset", "demo")
    assert code == 2
    assert "cannot be read (No such file or directory)" in err


def test_every_preset_fits(kfp: Kfp, run: Run) -> None:
    """Every preset's settings are arguments that the compiled pipeline takes."""
    for preset in ("demo", "finetune", "b16", "l14", "h14"):
        code, _, err = run("submit", "--preset", preset, "--data", "s3://bucket/photos")
        assert (code, err) == (0, ""), preset
    assert len(kfp.versions) == 1
    sent: list[dict[str, Any]] = [body["runtime_config"]["parameters"] for body in kfp.asked("POST", "/runs")]
    assert len({body["training_steps"] for body in sent}) > 1


def test_without_a_checkout_the_revision_of_the_image_names_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    from cloc.tracking.provenance import common_tags

    monkeypatch.setattr("pipelines.upload.git", lambda *arguments, folder: "")
    monkeypatch.setattr("cloc.tracking.provenance.git", lambda *arguments: "")
    monkeypatch.delenv("CLOC_REVISION", raising=False)
    assert version_prefix() == "0.1.0-nogit"
    assert "mlflow.source.git.commit" not in common_tags()
    monkeypatch.setenv("CLOC_REVISION", "0123456789abcdef")
    assert version_prefix() == "0.1.0-01234567"
    assert common_tags()["mlflow.source.git.commit"] == "0123456789abcdef"
