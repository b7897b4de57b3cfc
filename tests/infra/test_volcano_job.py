"""The training job that TorchX makes, against what Volcano takes, what the namespace admits and what a task may do."""

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubernetes.client.rest import RESTClientObject
from torchx import specs

from cloc.config import parse
from cloc.config.schema import TrainConfig
from cloc.training.launch import logs, request_text, run_app, training_app, wait
from cloc.training.preemption import PREEMPTED, Stopped
from tests.fake_cluster import Cluster, FakePod, fake_cluster
from tests.infra import policies, volcano
from tests.infra.manifests import OVERLAYS, ROOT, Object, golden, named
from tests.infra.test_manifests import VERSIONS

README = ROOT / "infra" / "README.md"


def documented() -> dict[str, Any]:
    """The settings of a training job that infra/README.md gives."""
    (block,) = re.findall(r"```yaml\n(train:\n.*?)```", README.read_text(), re.DOTALL)
    return yaml.safe_load(block)


def settings(**values: Any) -> TrainConfig:
    given = documented()["train"]
    return parse({"train": {**given, "batch_size": 64, **values}}, source="test").train


def application(config: TrainConfig) -> specs.AppDef:
    return training_app("s3://cloc/runs/cloc-1", config, module="cloc.training.trainer", environment={})


def job(config: TrainConfig) -> Object:
    return yaml.safe_load(request_text(application(config), config))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", [{}, {"nodes": 1, "device": "cpu"}, {"max_retries": 0}], ids=str)
def test_job_is_known_field_by_field(values: dict[str, Any], version: str) -> None:
    volcano.validate(job(settings(**values)), kubernetes=version)


def test_golden_job_is_known_field_by_field() -> None:
    text = (ROOT / "tests" / "golden" / "volcano_job.yaml").read_text()
    volcano.validate(yaml.safe_load(text), kubernetes=VERSIONS[-1])


def change(path: str, value: Any) -> Any:
    def apply(item: Object) -> None:
        *parts, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for part in parts:
            item = item[part]
        if value is None:
            del item[last]
        else:
            item[last] = value

    return apply


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.minAvailable", 3),
        ("spec.minAvailable", 0),
        ("spec.minAvailable", None),
        ("spec.queue", "Not a name"),
        ("spec.scheduler", "volcano"),
        ("spec.schedulerName", "default-scheduler"),
        ("spec.maxRetry", "3"),
        ("spec.policies.0.action", "Restart"),
        ("spec.policies.0.exitCode", 0),
        ("spec.policies.0.event", "PodFailed"),
        ("spec.policies.4.events", ["PodDied"]),
        ("spec.plugins.srv", []),
        ("spec.tasks", []),
        ("spec.tasks.1.name", "trainer-0"),
        ("spec.tasks.0.name", "Trainer"),
        ("spec.tasks.0.replicas", None),
        ("spec.tasks.0.template.spec.containers.0.name", None),
        ("spec.tasks.0.template.spec.containers.0.imagePullPolicie", "Always"),
        ("spec.tasks.0.template.spec.tolerations", "all"),
    ],
)
def test_schema_sees_it(path: str, value: Any) -> None:
    item = job(settings(max_retries=2))
    change(path, value)(item)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        volcano.validate(item, kubernetes=VERSIONS[-1])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_documented_job_finds_what_it_names(overlay: str) -> None:
    items, made = golden(overlay), job(settings())
    assert made["metadata"]["namespace"] == "cloc-training"
    named(items, f"Queue/{made['spec']['queue']}")
    named(items, f"PriorityClass/{made['spec']['priorityClassName']}")
    assert policies.references([*items, made]) == []
    # The policies for ranks select its pods.
    for task in made["spec"]["tasks"]:
        assert task["template"]["metadata"]["labels"]["app.kubernetes.io/part-of"] == "cloc"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_namespace_admits_the_job(overlay: str) -> None:
    items = golden(overlay)
    assert policies.pod_security([*items, job(settings())]) == []
    made = job(settings())
    made["spec"]["tasks"][0]["template"]["spec"]["hostNetwork"] = True
    assert policies.pod_security([*items, made])


def test_documented_job_asks_for_fixed_resources() -> None:
    made = job(settings())
    assert policies.resources([made]) == []
    assert policies.secrets([made]) == []


# What an API server calls an act on one object, and on all of a kind.
_ONE = {"GET": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_ALL = {"GET": "list", "POST": "create", "DELETE": "deletecollection"}


def act(method: str, url: str) -> tuple[str, str, str]:
    """API group, resource and verb of a request, as RBAC names them."""
    parts = urlsplit(url).path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    assert rest[:2] == ["namespaces", "cloc-training"], url
    resource, *rest = rest[2:]
    name, subresource = rest[:1], rest[1:]
    return group, "/".join([resource, *subresource]), (_ONE if name else _ALL)[method]


@pytest.fixture
def acts(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str, str]]:
    """What is asked of the API server."""
    found: set[tuple[str, str, str]] = set()
    original = RESTClientObject.request

    def request(self: RESTClientObject, method: str, url: str, *arguments: Any, **options: Any) -> Any:
        found.add(act(method, url))
        return original(self, method, url, *arguments, **options)

    monkeypatch.setattr(RESTClientObject, "request", request)
    return found


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setitem(wait.POLL_SECONDS, "kubernetes", 0.05)
    monkeypatch.setattr(logs, "_AGAIN_SECONDS", 0.05)
    with fake_cluster() as found:
        yield found


def test_a_task_may_do_what_it_does_and_no_more(
    cluster: Cluster, acts: set[tuple[str, str, str]], tmp_path: Path
) -> None:
    """A job that succeeds, and one that is cancelled: start, look, follow, list, cancel."""
    config = settings()
    app = application(config)
    cluster.pods = {number: FakePod("Succeeded", 0, ("hello",)) for number in range(config.nodes)}
    run_app(app, config, log_dir=tmp_path, api=cluster.client())
    cluster.jobs, cluster.phases = {}, ["Running"]
    cluster.pods = {number: FakePod(lines=("hello",)) for number in range(config.nodes)}

    def stop() -> None:
        while not cluster.jobs:
            time.sleep(0.02)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        while not cluster.aborted:
            time.sleep(0.02)
        for pod in cluster.pods.values():
            pod.phase, pod.code = "Failed", PREEMPTED

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    with pytest.raises(Stopped):
        run_app(app, config, log_dir=tmp_path, api=cluster.client())
    thread.join(timeout=10)
    allowed = {
        (group, resource, verb)
        for rule in named(golden("local"), "Role/cloc-training/cloc-launcher")["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert acts - allowed == set(), "the Role gives too little"
    assert allowed - acts == set(), "the Role gives too much"
