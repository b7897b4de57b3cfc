"""A job as data, the requests made of it, the verdict on ranks, and where a run writes: nothing is started.

The golden requests are written anew by: CLOC_REGENERATE=1 pytest tests/unit/test_launch.py -k golden
"""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from kubernetes import client

from cloc.cli import cloc
from cloc.config import parse
from cloc.config.schema import RECORDING, TrainConfig
from cloc.errors import ConfigError
from cloc.training import stage
from cloc.training.data_check import held_out
from cloc.training.job import TrainingJob
from cloc.training.launch import finish, home, reachable, request_text, training_app
from cloc.training.launch.logs import whole_lines
from cloc.training.launch.volcano import pods_of
from cloc.training.preemption import PREEMPTED
from cloc.training.ranks import Ended, Errors, Printer, RankStream, Verdict, verdict
from tests.conftest import write_dataset

GOLDEN = Path(__file__).parents[1] / "golden"
ENVIRONMENT = {
    "AWS_ENDPOINT_URL": "http://minio.storage:9000",
    "AWS_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "a-key-that-must-not-show",
    "AWS_SECRET_ACCESS_KEY": "a-secret-that-must-not-show",
    "MLFLOW_TRACKING_URI": "http://mlflow:5000",
    "MLFLOW_TRACKING_PASSWORD": "a-password-that-must-not-show",
    "MLFLOW_RUN_ID": "0123456789abcdef",
    "HOME": "/home/somebody",
}
KUBERNETES = {
    "namespace": "vision",
    "queue": "research",
    "image": "registry.example/cloc:1",
    "service_account": "trainer",
    "priority_class": "high",
    "cpu": 96,
    "memory_mib": 1_048_576,
    "node_selector": ["accelerator=h200"],
    "tolerations": ["nvidia.com/gpu:NoSchedule", "team=vision:NoExecute"],
    "secrets": ["cloc-s3", "cloc-mlflow"],
    "environment": ["NCCL_SOCKET_IFNAME=eth0,eth1"],
    "volume_claims": ["scratch:/scratch"],
}
CLUSTER = {"nodes": 2, "processes": 8, "max_retries": 3, "storage": "s3://bucket/runs"}


def train(**values: Any) -> TrainConfig:
    return parse({"train": values}, source="test").train


def kubernetes(**values: Any) -> TrainConfig:
    return train(scheduler="kubernetes", kubernetes={**KUBERNETES, **values}, **CLUSTER)


def text_of(config: TrainConfig, **environment: str) -> str:
    app = training_app(
        "s3://bucket/runs/cloc-1",
        config,
        module="cloc.training.trainer",
        environment={**ENVIRONMENT, **environment},
        run="cloc-0123456789abcdef",
    )
    return request_text(app, config)


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What TorchX draws at random, and what it takes from the machine."""
    monkeypatch.setattr("torchx.schedulers.ids.random_id", lambda max_length=None: "abc123")
    monkeypatch.setattr("torchx.util.session.CURRENT_SESSION_ID", "session")
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setattr("cloc.training.launch.app.sys.executable", "/venv/bin/python")


def check_golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("CLOC_REGENERATE"):
        path.write_text(text)
    assert text == path.read_text(), f"CLOC_REGENERATE=1 pytest {Path(__file__).name} -k golden writes {path} anew"


@pytest.mark.usefixtures("fixed")
def test_golden_volcano_job() -> None:
    check_golden("volcano_job.yaml", text_of(kubernetes()))


@pytest.mark.usefixtures("fixed")
def test_golden_slurm_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = train(scheduler="slurm", slurm={"partition": "gpu", "time": "2-00:00:00"}, **CLUSTER)
    check_golden("slurm.sh", text_of(config))


@pytest.mark.usefixtures("fixed")
def test_slurm_script_is_bash_that_requeues_only_what_may_succeed(tmp_path: Path) -> None:
    config = train(scheduler="slurm", **CLUSTER)
    script = text_of(config)
    for name, body in {
        "srun": "#!/bin/bash\necho srun >> $LOG\nexit $FAKE\n",
        "scontrol": "#!/bin/bash\necho $@ >> $LOG\n",
    }.items():
        (tmp_path / name).write_text(body)
        (tmp_path / name).chmod(0o755)
    for code, tried_again in ((0, False), (1, True), (3, False), (5, False), (PREEMPTED, True), (137, True)):
        log = tmp_path / f"log{code}"
        variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "FAKE": str(code), "LOG": str(log), "SLURM_JOB_ID": "7"}
        done = subprocess.run(["bash", "-c", script], env=variables, capture_output=True, check=False)
        assert done.returncode == code
        assert log.read_text().splitlines() == ["srun", *(["requeue 7"] if tried_again else [])]


def deserialized(text: str) -> tuple[dict[str, Any], list[client.V1PodTemplateSpec]]:
    """The job, and its pods as kubernetes' own models, which know every field's name and type."""
    job = yaml.safe_load(text)
    api = client.ApiClient()

    class Response:
        def __init__(self, body: Any) -> None:
            self.data = json.dumps(body)

    pods = [api.deserialize(Response(task["template"]), "V1PodTemplateSpec") for task in job["spec"]["tasks"]]
    for task, pod in zip(job["spec"]["tasks"], pods, strict=True):
        # Nothing was lost: a field that kubernetes does not know would be.
        assert api.sanitize_for_serialization(pod) == _without_empty(task["template"])
    return job, pods


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_empty(item) for key, item in value.items() if item is not None}
    return [_without_empty(item) for item in value] if isinstance(value, list) else value


def test_volcano_job_is_a_gang_with_room_secrets_and_time() -> None:
    job, pods = deserialized(text_of(kubernetes()))
    assert job["spec"]["minAvailable"] == len(pods) == 2
    assert job["spec"]["queue"] == "research"
    assert job["metadata"]["namespace"] == "vision"
    assert job["spec"]["priorityClassName"] == "high"
    for number, pod in enumerate(pods):
        spec, (container,) = pod.spec, pod.spec.containers
        assert pod.metadata.labels["cloc/run"] == "cloc-0123456789abcdef"
        assert spec.restart_policy == "Never"
        assert spec.termination_grace_period_seconds == 300
        (shm,) = [volume for volume in spec.volumes if volume.empty_dir]
        assert (shm.empty_dir.medium, shm.empty_dir.size_limit) == ("Memory", "16384Mi")
        mounts = {mount.mount_path: mount.name for mount in container.volume_mounts}
        assert mounts["/dev/shm"] == shm.name
        assert "/scratch" in mounts
        assert container.resources.limits == {"cpu": "96000m", "memory": "1048576Mi", "nvidia.com/gpu": "8"}
        assert container.resources.requests == container.resources.limits
        assert [source.secret_ref.name for source in container.env_from] == ["cloc-s3", "cloc-mlflow"]
        environment = {item.name: item.value for item in container.env}
        assert environment["AWS_ENDPOINT_URL"] == "http://minio.storage:9000"
        assert environment["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
        assert environment["NCCL_SOCKET_IFNAME"] == "eth0,eth1"
        assert environment["OMP_NUM_THREADS"] == "12"
        given = dict(zip(container.command[3::2], container.command[4::2], strict=True))
        assert given["--node"] == str(number)
        # The agent has ended what did not save before its own time is over.
        assert int(given["--grace"]) < spec.termination_grace_period_seconds
        assert given["--rank0"] == ("TORCHX_RANK0_HOST" if number == 0 else "VC_TRAINER_0_HOSTS")
        assert {item.key: item.operator for item in spec.tolerations} == {"nvidia.com/gpu": "Exists", "team": "Equal"}
        assert spec.node_selector == {"accelerator": "h200"}


def test_no_secret_is_in_any_request() -> None:
    for config in (kubernetes(), train(scheduler="slurm", **CLUSTER), train()):
        assert "must-not-show" not in text_of(config)


def test_what_is_of_this_machine_alone_is_not_passed_on_and_a_password_is_refused() -> None:
    assert "sqlite" not in text_of(kubernetes(), MLFLOW_TRACKING_URI="sqlite:///mlflow.db")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI holds a user or password") as caught:
        text_of(kubernetes(), MLFLOW_TRACKING_URI="https://me:must-not-show@mlflow")
    assert "must-not-show" not in str(caught.value)


def test_restart_policy_fits_the_retries() -> None:
    """Volcano's count has the first start in it, and no policy may start again what would only fail again."""
    for retries, action in ((3, "RestartJob"), (0, "TerminateJob")):
        config = kubernetes().model_copy(update={"max_retries": retries})
        job = yaml.safe_load(text_of(config))
        assert job["spec"]["maxRetry"] == retries + 1
        *fatal, other = job["spec"]["policies"]
        assert {item["exitCode"]: item["action"] for item in fatal} == dict.fromkeys((2, 3, 4, 5), "TerminateJob")
        assert other == {"events": ["PodEvicted", "PodFailed"], "action": action}
        assert not any("policies" in task or "maxRetry" in task for task in job["spec"]["tasks"])


def test_another_gpu_resource_and_none() -> None:
    _, pods = deserialized(text_of(kubernetes(gpu_resource="amd.com/gpu")))
    assert pods[0].spec.containers[0].resources.limits["amd.com/gpu"] == "8"
    assert "nvidia.com/gpu" not in pods[0].spec.containers[0].resources.limits
    without = kubernetes().model_copy(update={"device": "cpu"})
    _, pods = deserialized(text_of(without))
    assert set(pods[0].spec.containers[0].resources.limits) == {"cpu", "memory"}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tolerations", ["gpu"], "train.kubernetes.tolerations: 'gpu' is not key=value:Effect"),
        ("tolerations", ["gpu:Sometimes"], "effect must be NoSchedule, PreferNoSchedule or NoExecute"),
        ("node_selector", ["h200"], "train.kubernetes.node_selector: 'h200' is not label=value"),
        ("volume_claims", ["scratch"], "train.kubernetes.volume_claims: 'scratch' is not claim:/path"),
        ("environment", ["NCCL_DEBUG"], "train.kubernetes.environment: 'NCCL_DEBUG' is not NAME=value"),
    ],
)
def test_unreadable_settings_are_named(name: str, value: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        text_of(kubernetes(**{name: value}))


def pod(phase: str, **terminated: Any) -> client.V1Pod:
    state = client.V1ContainerState(terminated=client.V1ContainerStateTerminated(**terminated) if terminated else None)
    status = client.V1ContainerStatus(
        name="trainer", image="i", image_id="i", ready=False, restart_count=0, state=state
    )
    return client.V1Pod(
        metadata=client.V1ObjectMeta(name=f"pod-{phase}"),
        status=client.V1PodStatus(phase=phase, container_statuses=[status]),
    )


def test_pods_are_read() -> None:
    class Core:
        def list_namespaced_pod(self, namespace: str, label_selector: str) -> client.V1PodList:
            assert (namespace, label_selector) == ("vision", "volcano.sh/job-name=job")
            killed = pod("Failed", exit_code=137, reason="OOMKilled")
            return client.V1PodList(items=[pod("Succeeded", exit_code=0, reason="Completed"), killed, pod("Running")])

    found = pods_of(Core(), namespace="vision", job="job")  # type: ignore[arg-type]  # all that is asked of it
    assert found.running == 1
    assert [(end.name, end.failed, end.code, end.reason) for end in found.ends] == [
        ("pod-Failed", True, 137, "OOMKilled"),
        ("pod-Succeeded", False, 0, ""),
    ]


# What the agent makes of its ranks


def judged(*ended: tuple[int, int], told: bool = False, errors: tuple[str, ...] = ()) -> Verdict:
    found = Errors()
    for line in errors:
        found.add(line)
    return verdict([Ended(rank, code) for rank, code in ended], errors=found, host="h", told=told, grace=5)


def test_verdicts() -> None:
    assert judged((0, 0), (1, 0)) == Verdict(0)
    assert judged((0, PREEMPTED), (1, PREEMPTED)) == Verdict(PREEMPTED)
    # One that did not listen yet has nothing to save; one that was killed by a peer's loss counts less than the peer.
    assert judged((0, -signal.SIGTERM), (1, PREEMPTED), told=True) == Verdict(PREEMPTED)
    assert judged((0, -signal.SIGTERM), told=True) == Verdict(PREEMPTED)
    lost = judged((0, 76), (1, -signal.SIGKILL), errors=("rank lost: another process closed its connection",))
    assert (lost.code, lost.line.split(":")[0]) == (1, "rank 1 on h was killed by SIGKILL (out of memory?)")
    assert judged((0, 1), (1, 5), errors=("batch too large",)) == Verdict(5, "batch too large")
    assert judged((0, 76), errors=("rank lost: x",)) == Verdict(1, "rank lost: x")
    assert judged((3, 1)).line.startswith("rank 3 on h crashed with exit code 1")
    late = judged((0, PREEMPTED), (1, -signal.SIGKILL), told=True)
    assert late.code == PREEMPTED
    assert "rank 1 on h did not save within 5 seconds" in late.line
    several = judged(*((rank, -signal.SIGSEGV) for rank in range(3)))
    assert several.line.startswith("ranks 0, 1, 2 on h were killed by SIGSEGV: run the same command again")


def test_what_the_agent_ended_itself_is_no_loss() -> None:
    ended = [Ended(0, 1), Ended(1, -signal.SIGKILL, by_agent=True)]
    found = verdict(ended, errors=Errors(), host="h", told=False, grace=5)
    assert found.line.startswith("rank 0 on h crashed with exit code 1")


def test_a_cause_is_a_better_reason_than_its_consequences() -> None:
    errors = Errors(["rank lost: x", "rank 1 on h crashed with exit code 1; ...", "out of GPU memory"])
    assert errors.best == "out of GPU memory"
    assert Errors(["rank lost: x"]).best == "rank lost: x"


def test_pieces_become_lines(capsys: pytest.CaptureFixture[str]) -> None:
    errors = Errors()
    stream = RankStream(Printer(errors), prefix="[rank 1] ", is_error=False)
    for piece in ("st", "ep 1\nerr", "or: no\n\nlast"):
        stream.write(piece)
    stream.finish()
    assert capsys.readouterr().out == "[rank 1] step 1\n[rank 1] last\n"
    assert errors.lines == ["no"]
    assert list(whole_lines(["a", "b\nc", "\n", "d"])) == ["ab", "c", "d"]


# Where a run writes


def job(**values: Any) -> TrainingJob:
    given = {"objective": "cloc", "steps": 5, "images": "i", "captions": "c", "regions": "r", "data_digest": "d"}
    config = parse({"train": values.pop("train", {})}, source="test")
    return TrainingJob(**{**given, "config": config.model_dump(mode="json"), "tokenizer": "", "output": "", **values})


def test_a_run_is_named_after_what_is_trained_and_not_where() -> None:
    name = stage.run_name(job())
    assert name.startswith("cloc-")
    assert stage.run_name(job(train={"processes": 4, "max_retries": 2, "checkpoint_every": 7}, images="moved")) == name
    assert stage.run_name(job(objective="clip")) != name
    assert stage.run_name(job(data_digest="e")) != name
    assert stage.run_name(job(train={"learning_rate": 1e-3})) != name
    assert "port" in RECORDING


def collection(tmp_path: Path) -> str:
    for split in ("train", "dev"):
        write_dataset(tmp_path / split, 4)
    return str(tmp_path)


def test_evaluation_while_training_needs_its_split(tmp_path: Path) -> None:
    data = collection(tmp_path)
    assert held_out(train(), data) == ""
    assert held_out(train(evaluate_every=5, evaluate_split="dev"), data) == f"{data}/dev"
    with pytest.raises(ConfigError, match=r"train.evaluate_every is 5, but .* has no split 'val'"):
        held_out(train(evaluate_every=5), data)
    with pytest.raises(ConfigError, match="has no split 'dev'"):  # a data set alone would be held out of itself
        held_out(train(evaluate_every=5, evaluate_split="dev"), f"{data}/train")


def dry_run(tmp_path: Path, data: str, *settings: str) -> Any:
    arguments = ["pretrain", "--preset", "demo", "--data", data, "--captions", data, "--regions", data]
    arguments += ["--out", str(tmp_path / "out"), "--dry-run", *(part for item in settings for part in ("-S", item))]
    return CliRunner().invoke(cloc, arguments)


CLUSTER_SETTINGS = ("train.scheduler=kubernetes", "train.kubernetes.image=cloc:1", "train.storage=s3://bucket/runs")


def test_dry_run_prints_and_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    data = collection(tmp_path / "data")
    before = sorted(tmp_path.rglob("*"))
    done = dry_run(tmp_path, data)
    assert done.exit_code == 0, done.output
    assert f"-m cloc.training.agent --output {tmp_path}/out --module cloc.training.trainer --nodes 1" in done.output
    assert "OMP_NUM_THREADS=" in done.output
    done = dry_run(tmp_path, f"{data}/train", *CLUSTER_SETTINGS)
    spec = yaml.safe_load(done.output)["spec"]
    command = spec["tasks"][0]["template"]["spec"]["containers"][0]["command"]
    assert command[:3] == ["python", "-m", "cloc.training.agent"]
    assert command[4].startswith("s3://bucket/runs/cloc-")
    assert not command[4].endswith("DATA")
    done = dry_run(tmp_path, "s3://bucket/data", *CLUSTER_SETTINGS)  # which nobody serves
    assert "s3://bucket/runs/cloc-DATA" in done.output
    assert yaml.safe_load(done.output)["kind"] == "Job"
    assert "# DATA stands for a hash of the data, which cannot be read from here: " in done.output.splitlines()[-1]
    assert sorted(tmp_path.rglob("*")) == before


def test_paths_that_other_machines_do_not_have_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = dry_run(tmp_path, "data", *CLUSTER_SETTINGS)
    assert isinstance(done.exception, ConfigError)
    assert "'data' is a relative path, which pods cannot find" in str(done.exception)
    config = train(scheduler="slurm", storage="runs")
    assert reachable("runs", config) == str(tmp_path / "runs")
    assert reachable("runs", train()) == "runs"


def test_a_run_lies_apart_until_it_is_done_and_takes_nothing_else_with_it(tmp_path: Path) -> None:
    train, place = TrainConfig(), str(tmp_path / "unfinished")
    assert home("cloc-1", train, "out") == "out"
    stored = train.model_copy(update={"storage": "s3://bucket/runs"})
    assert home("cloc-1", stored, "out", unfinished=place) == "s3://bucket/runs/cloc-1"
    finish("cloc-1", stored, unfinished=place)
    for name in ("cloc-1", "other"):
        Path(home(name, train, "out", unfinished=place)).mkdir(parents=True)
    finish("cloc-1", train, unfinished=place)
    assert [path.name for path in Path(place).iterdir()] == ["other"]
    finish("other", train, unfinished=place)
    assert not Path(place).exists()
    with pytest.raises(ConfigError, match=r"--unfinished s3://bucket/x: give a folder"):
        home("cloc-1", train, "out", unfinished="s3://bucket/x")
