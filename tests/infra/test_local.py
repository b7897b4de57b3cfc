"""infra/local/up and down with docker, kind and kubectl replaced by fakes that write down how they are called."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.infra.manifests import ROOT, containers, golden, pods
from tests.infra.test_manifests import VERSIONS

TOOLS = ("docker", "kind", "kubectl", "git", "openssl")
# What the scripts take from the system.
SYSTEM = ("bash", "cat", "dirname", "env", "grep", "mv", "rm", "tr", "uname")
FAKE = """#!/bin/bash
echo "{name} $*" >> "$LOG"
[[ "{name} $*" == $FAILS ]] && {{ echo "{name} says no" >&2; exit 1; }}
case "{name} $*" in
"kind get clusters") cat "$CLUSTERS" ;;
"kind create cluster"*) echo cloc > "$CLUSTERS" ;;
"kind delete cluster"*) : > "$CLUSTERS" ;;
*"-n volcano-system get deployment -o name") echo deployment.apps/volcano-admission ;;
*"-n kubeflow get deployment -o name") echo deployment.apps/ml-pipeline; echo deployment.apps/ml-pipeline-ui ;;
"openssl rand -hex "*) echo "$RANDOM$RANDOM$RANDOM" ;;
esac
exit 0
"""


@dataclass
class Machine:
    """A machine with a copy of infra/ and the tools that are there.

    Attributes:
        folder: holds `infra` and `bin`.
        fails: pattern of the call that fails.
    """

    folder: Path
    fails: str = ""
    calls: list[str] = field(default_factory=list)

    def run(self, script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        log = self.folder / "log"
        log.write_text("")
        variables = {
            "PATH": str(self.folder / "bin"),
            "LOG": str(log),
            "CLUSTERS": str(self.folder / "clusters"),
            "FAILS": self.fails,
        }
        done = subprocess.run(
            [shutil.which("bash") or "bash", str(self.folder / "infra" / "local" / script), *arguments],
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        self.calls = log.read_text().splitlines()
        return done

    @property
    def secrets(self) -> Path:
        return self.folder / "infra" / "k8s" / "overlays" / "local" / "secrets"

    def filled(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.secrets.glob("*.env")}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    shutil.copytree(ROOT / "infra", tmp_path / "infra")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in SYSTEM:
        tools.joinpath(name).symlink_to(shutil.which(name) or f"/bin/{name}")
    for name in TOOLS:
        path = tools / name
        path.write_text(FAKE.format(name=name))
        path.chmod(0o755)
    (tmp_path / "clusters").write_text("")
    made = Machine(tmp_path)
    for path in made.secrets.glob("*.env"):
        path.unlink()
    return made


def without_openssl(calls: list[str]) -> list[str]:
    return [call for call in calls if not call.startswith("openssl ")]


def test_up_does_it_all_in_order(machine: Machine) -> None:
    done = machine.run("up", "cloc-python:1")
    assert done.returncode == 0, done.stderr
    infra = machine.folder / "infra"
    overlay = f"{infra}/local/../k8s/overlays/local"
    volcano = "https://raw.githubusercontent.com/volcano-sh/volcano/v1.15.1/installer/volcano-development.yaml"
    pipelines = "https://github.com/kubeflow/pipelines/manifests/kustomize"
    k = "kubectl --context kind-cloc"
    assert without_openssl(machine.calls) == [
        "docker info",
        "kind get clusters",
        f"kubectl kustomize {overlay}",
        "kind get clusters",
        f"kind create cluster --name cloc --config {infra}/local/kind.yaml --wait 5m",
        "kind export kubeconfig --name cloc",
        "kind load docker-image cloc-python:1 --name cloc",
        f"{k} apply --server-side --force-conflicts -f {volcano}",
        f"{k} -n volcano-system get deployment -o name",
        f"{k} -n volcano-system rollout status deployment.apps/volcano-admission --timeout=20m",
        f"{k} apply -k {pipelines}/cluster-scoped-resources?ref=2.17.0&timeout=600s",
        f"{k} wait --for=condition=established --timeout=2m crd/applications.app.k8s.io",
        f"{k} apply -k {pipelines}/env/platform-agnostic?ref=2.17.0&timeout=600s",
        f"{k} -n kubeflow get deployment -o name",
        f"{k} -n kubeflow rollout status deployment.apps/ml-pipeline --timeout=20m",
        f"{k} -n kubeflow rollout status deployment.apps/ml-pipeline-ui --timeout=20m",
        f"{k} -n cloc delete job minio-bucket mlflow-user --ignore-not-found",
        f"{k} apply -k {overlay}",
        f"{k} -n cloc rollout status statefulset/minio --timeout=20m",
        f"{k} -n cloc wait --for=condition=complete --timeout=10m job/minio-bucket",
        f"{k} -n cloc rollout status statefulset/postgres --timeout=20m",
        f"{k} -n cloc rollout status deployment/mlflow --timeout=20m",
        f"{k} -n cloc wait --for=condition=complete --timeout=10m job/mlflow-user",
    ]
    steps = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert [step[:5] for step in steps] == ["[1/5]", "[2/5]", "[3/5]", "[4/5]", "[5/5]"]
    for address in ("http://localhost:8080", "http://localhost:5000", "http://localhost:9001"):
        assert address in done.stdout


def test_up_makes_every_secret_of_the_overlay_and_shows_none(machine: Machine) -> None:
    done = machine.run("up")
    filled = machine.filled()
    assert set(filled) == {path.name.removesuffix(".example") for path in machine.secrets.glob("*.env.example")}
    for name, text in filled.items():
        wanted = (machine.secrets / f"{name}.example").read_text()
        keys = [[line.partition("=")[0] for line in some.splitlines() if line[:1] != "#"] for some in (text, wanted)]
        assert keys[0] == keys[1], name
        assert "replace-me" not in text
        assert (machine.secrets / name).stat().st_mode & 0o077 == 0
        for line in text.splitlines():
            key, _, value = line.partition("=")
            assert value
            assert key in ("root-user", "admin-username", "username") or value not in done.stdout + done.stderr


def test_up_again_keeps_cluster_and_passwords(machine: Machine) -> None:
    machine.run("up")
    filled, first = machine.filled(), without_openssl(machine.calls)
    done = machine.run("up")
    assert done.returncode == 0, done.stderr
    assert machine.filled() == filled
    assert without_openssl(machine.calls) == [
        call for call in first if not call.startswith(("kind create", "kind load"))
    ]


def test_up_touches_no_other_cluster(machine: Machine) -> None:
    machine.run("up")
    kubectl = [call for call in machine.calls if call.startswith("kubectl ")]
    assert kubectl
    assert [call for call in kubectl if "--context kind-cloc" not in call and "kubectl kustomize" not in call] == []


@pytest.mark.parametrize("missing", [*[(tool,) for tool in TOOLS], ("docker", "kind", "git")], ids=str)
def test_up_says_in_a_line_each_what_is_missing(machine: Machine, missing: tuple[str, ...]) -> None:
    for name in missing:
        (machine.folder / "bin" / name).unlink()
    done = machine.run("up")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert [line.split(";")[0] for line in lines] == [f"error: {name} is not here" for name in missing]
    assert machine.calls == []
    assert machine.filled() == {}


def test_up_says_that_docker_does_not_answer(machine: Machine) -> None:
    machine.fails = "docker info"
    done = machine.run("up")
    assert done.returncode == 2
    assert done.stderr == "error: the docker daemon does not answer; start it, or see what 'docker info' says\n"
    assert machine.calls == ["docker info"]


def test_up_says_that_kubectl_is_too_old(machine: Machine) -> None:
    machine.fails = "kubectl kustomize*"
    done = machine.run("up")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("install kubectl 1.30 or later")
    assert not [call for call in machine.calls if call.startswith("kind create")]


def test_up_stops_where_something_fails_and_goes_on_from_there(machine: Machine) -> None:
    machine.fails = "*rollout status deployment.apps/volcano-admission*"
    done = machine.run("up")
    assert done.returncode == 1
    assert "volcano-admission" in machine.calls[-1]
    assert "[3/5]" not in done.stdout
    machine.fails = ""
    assert machine.run("up").returncode == 0
    assert not [call for call in machine.calls if call.startswith("kind create")]


def test_up_does_not_give_a_cluster_new_passwords(machine: Machine) -> None:
    machine.run("up")
    (machine.secrets / "postgres.env").unlink()
    done = machine.run("up")
    assert done.returncode == 2
    assert "postgres.env is not" in done.stderr
    assert "infra/local/down" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not [call for call in machine.calls if call.startswith("kubectl ")]


def test_down_removes_cluster_and_passwords_and_may_be_run_again(machine: Machine) -> None:
    machine.run("up")
    done = machine.run("down")
    assert done.returncode == 0, done.stderr
    assert machine.calls == ["docker info", "kind get clusters", "kind delete cluster --name cloc"]
    assert machine.filled() == {}
    assert (machine.secrets / "s3.env.example").exists()
    again = machine.run("down")
    assert again.returncode == 0, again.stderr
    assert machine.calls == ["docker info", "kind get clusters"]


def test_down_keeps_the_passwords_of_a_cluster_that_stays(machine: Machine) -> None:
    machine.run("up")
    machine.fails = "kind delete*"
    assert machine.run("down").returncode != 0
    assert machine.filled()


def test_versions_are_those_of_the_libraries_and_of_the_readme() -> None:
    """A server and the client in the images are of one release."""
    up = (ROOT / "infra" / "local" / "up").read_text()
    versions = dict(re.findall(r"^(VOLCANO|PIPELINES)=v?(\S+)$", up, re.MULTILINE))
    locked = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    (server,) = {
        container["image"]
        for _, pod in pods(golden("local"))
        for container in containers(pod)
        if "/mlflow:" in container["image"]
    }
    assert versions["PIPELINES"] == locked["kfp"]
    assert server == f"ghcr.io/mlflow/mlflow:v{locked['mlflow']}-full"
    (node,) = yaml.safe_load((ROOT / "infra" / "local" / "kind.yaml").read_text())["nodes"]
    kubernetes, _, digest = node["image"].removeprefix("kindest/node:v").partition("@sha256:")
    assert len(digest) == 64
    assert kubernetes.startswith(f"{VERSIONS[-1]}.")
    readme = (ROOT / "infra" / "README.md").read_text()
    for named in (kubernetes, versions["PIPELINES"], versions["VOLCANO"], f"MLflow {locked['mlflow']}"):
        assert named in readme


def test_scripts_can_be_started() -> None:
    for name in ("up", "down"):
        assert os.access(ROOT / "infra" / "local" / name, os.X_OK)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize(
    "script", ["local/up", "local/down", "local/common.sh", "k8s/components/minio/bucket.sh"], ids=lambda name: name
)
def test_scripts_are_shellcheck_clean(script: str) -> None:
    done = subprocess.run(
        ["shellcheck", "--external-sources", f"infra/{script}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
