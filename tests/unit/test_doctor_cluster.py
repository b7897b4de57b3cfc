"""`cloc doctor --cluster`, with the real client, against an API server that holds the committed manifests of infra/k8s.

The golden output is written anew by: CLOC_REGENERATE=1 pytest tests/unit/test_doctor_cluster.py -k golden
"""

import base64
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from click.testing import CliRunner, Result

from cloc.cli import cloc
from cloc.cluster import CHECKS, objects
from cloc.cluster.rights import LAUNCH
from cloc.errors import ConfigError, DataError
from tests.infra.manifests import Object, golden, named, of_kind
from tests.s3_server import VARIABLES, free_port

GOLDEN = Path(__file__).parents[1] / "golden" / "doctor_cluster.txt"
KINDS = {
    "namespaces": "Namespace",
    "configmaps": "ConfigMap",
    "secrets": "Secret",
    "serviceaccounts": "ServiceAccount",
    "persistentvolumeclaims": "PersistentVolumeClaim",
    "resourcequotas": "ResourceQuota",
    "nodes": "Node",
    "queues": "Queue",
    "priorityclasses": "PriorityClass",
    "storageclasses": "StorageClass",
    "networkpolicies": "NetworkPolicy",
}
MLFLOW, PIPELINES = "cloc/http:mlflow:5000", "kubeflow/http:ml-pipeline:8888"
TASKS = "system:serviceaccount:kubeflow-cloc:default-editor"
USER = "engineer"
SECRET = "a-value-that-must-not-show"
SETTINGS = (
    "train.scheduler=kubernetes",
    "train.storage=s3://example-cloc/runs",
    "train.nodes=2",
    "train.processes=8",
    "train.device=cuda",
    "train.kubernetes.namespace=cloc-training",
    "train.kubernetes.queue=cloc-training",
    "train.kubernetes.priority_class=cloc-training",
    "train.kubernetes.service_account=cloc-trainer",
    "train.kubernetes.image=registry.example/cloc-python:0.1.0",
    "train.kubernetes.secrets=[cloc-training]",
    "train.kubernetes.node_selector=[nvidia.com/gpu.present=true]",
    "train.kubernetes.tolerations=['nvidia.com/gpu:NoSchedule']",
)


def status_of(code: int, reason: str, message: str = "") -> tuple[int, str]:
    """How an API server says no."""
    return code, json.dumps({"kind": "Status", "code": code, "reason": reason, "message": message})


def node(name: str, *, gpus: int) -> Object:
    labels = {"nvidia.com/gpu.present": "true"} if gpus else {}
    taint = {"key": "nvidia.com/gpu", "effect": "NoSchedule"}
    return {
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": [taint]} if gpus else {},
        "status": {
            "allocatable": {"cpu": "95500m", "memory": "1000Gi", "pods": "110"}
            | ({"nvidia.com/gpu": str(gpus)} if gpus else {}),
            "conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": "True"}],
        },
    }


def cluster_objects() -> list[Object]:
    """What the cloud overlay makes, with what Kubernetes and Kubeflow add to it."""
    items = golden("cloud")
    for secret in of_kind(items, "Secret"):
        secret["data"] = {key: base64.b64encode(SECRET.encode()).decode() for key in secret["data"]}
    for quota in of_kind(items, "ResourceQuota"):
        quota["status"] = {"hard": quota["spec"]["hard"], "used": dict.fromkeys(quota["spec"]["hard"], "0")}
    for queue in of_kind(items, "Queue"):
        queue["status"] = {"state": "Open"}
    claim = {"name": "data-postgres-0", "namespace": "cloc"}
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    return [
        *items,
        {"kind": "Namespace", "metadata": {"name": "kubeflow-cloc"}},
        {"kind": "ServiceAccount", "metadata": {"name": "default-editor", "namespace": "kubeflow-cloc"}},
        {"kind": "PersistentVolumeClaim", "metadata": claim, "status": {"phase": "Bound"}},
        {"kind": "StorageClass", "metadata": {"name": "fast", "annotations": default}, "provisioner": "p"},
        node("cpu-0", gpus=0),
        node("gpu-0", gpus=8),
        node("gpu-1", gpus=8),
    ]


@dataclass
class Api:
    """An API server, and S3, to be spoilt.

    Attributes:
        folder: for a kube config.
        items: objects that it holds.
        interfaces: resources by group and version.
        services: answers by service and path; a service of None has no pod.
        forbidden: of paths that end in this, the user knows nothing.
        granted: rights beside those of the items' Roles: user, verb, group, resource, namespace.
        asked: paths.
    """

    folder: Path
    patch: pytest.MonkeyPatch
    port: int = 0
    items: list[Object] = field(default_factory=cluster_objects)
    interfaces: dict[str, list[str]] = field(
        default_factory=lambda: {
            "batch.volcano.sh/v1alpha1": ["jobs", "jobs/status"],
            "scheduling.volcano.sh/v1beta1": ["queues", "podgroups"],
            "argoproj.io/v1alpha1": ["workflows"],
            "kubeflow.org/v1beta1": ["scheduledworkflows"],
        }
    )
    services: dict[str, dict[str, tuple[int, str]] | None] = field(
        default_factory=lambda: {
            MLFLOW: {"/health": (200, "OK")},
            PIPELINES: {"/apis/v2beta1/healthz": (200, json.dumps({"tag_name": "2.17.0", "multi_user": True}))},
        }
    )
    forbidden: tuple[str, ...] = ()
    granted: set[tuple[str, str, str, str, str]] = field(
        default_factory=lambda: {(USER, right.verb, right.group, right.resource, "cloc-training") for right in LAUNCH}
    )
    bucket: str = "example-cloc"
    asked: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def named(self, name: str) -> Object:
        return named(self.items, name)

    def remove(self, name: str) -> None:
        self.items.remove(self.named(name))

    def configure(self, url: str) -> None:
        """A kube config for that server."""
        cluster = {"name": "c", "cluster": {"server": url}}
        context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
        body = {"clusters": [cluster], "contexts": [context], "users": [{"name": "u", "user": {"token": "t"}}]}
        path = self.folder / "kubeconfig"
        path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "current-context": "x", **body}))
        self.patch.setenv("KUBECONFIG", str(path))

    def get(self, path: str) -> tuple[int, str]:
        if path.endswith(self.forbidden):
            return status_of(403, "Forbidden")
        if path == "/version/":
            names = ("gitCommit", "platform", "gitTreeState", "buildDate", "goVersion", "compiler")
            return 200, json.dumps({"major": "1", "minor": "35", "gitVersion": "v1.35.0", **dict.fromkeys(names, "")})
        if found := re.fullmatch(r"/api/v1/namespaces/([^/]+)/services/([^/]+)/proxy(/.*)", path):
            return self.proxy(f"{found[1]}/{found[2]}", found[3])
        parts = path.strip("/").split("/")
        if parts[0] == "apis" and len(parts) == 3:
            return self.resources("/".join(parts[1:]))
        rest = parts[2:] if parts[0] == "api" else parts[3:]
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        found_items = [
            item
            for item in of_kind(self.items, KINDS[rest[0]])
            if item["metadata"].get("namespace", "") == namespace and rest[1:] in ([], [item["metadata"]["name"]])
        ]
        if len(rest) == 1:
            return 200, json.dumps({"items": found_items})
        return (200, json.dumps(found_items[0])) if found_items else status_of(404, "NotFound")

    def resources(self, interface: str) -> tuple[int, str]:
        if interface not in self.interfaces:
            return 404, "404 page not found"
        rest = {"kind": "K", "namespaced": True, "singularName": "", "verbs": ["get"]}
        resources = [{"name": name, **rest} for name in self.interfaces[interface]]
        return 200, json.dumps({"groupVersion": interface, "resources": resources})

    def proxy(self, service: str, path: str) -> tuple[int, str]:
        if service not in self.services:
            return status_of(404, "NotFound")
        answers = self.services[service]
        if answers is None:
            return status_of(503, "ServiceUnavailable", 'no endpoints available for service "x"')
        return answers.get(path, (404, "nothing here"))

    def review(self, kind: str, body: Object) -> tuple[int, str]:
        if kind in self.forbidden:
            return status_of(403, "Forbidden")
        asked = body["spec"]["resourceAttributes"]
        user = body["spec"].get("user", USER)
        resource = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
        right = (user, asked["verb"], asked["group"], resource, asked.get("namespace", ""))
        return 201, json.dumps({**body, "status": {"allowed": right in self.granted | self.bound()}})

    def bound(self) -> set[tuple[str, str, str, str, str]]:
        """The rights that the RoleBindings give."""
        found = set()
        for binding in of_kind(self.items, "RoleBinding"):
            place = binding["metadata"]["namespace"]
            role = self.named(f"Role/{place}/{binding['roleRef']['name']}")
            found |= {
                (f"system:serviceaccount:{subject['namespace']}:{subject['name']}", verb, group, resource, place)
                for subject in binding["subjects"]
                for rule in role["rules"]
                for group in rule["apiGroups"]
                for resource in rule["resources"]
                for verb in rule["verbs"]
            }
        return found

    def list_bucket(self, bucket: str, authorization: str) -> tuple[int, str]:
        if f"Credential={SECRET}/" not in authorization:
            return 403, "<Error><Code>InvalidAccessKeyId</Code></Error>"
        if bucket != self.bucket:
            return 404, "<Error><Code>NoSuchBucket</Code></Error>"
        body = f"<Name>{bucket}</Name><IsTruncated>false</IsTruncated>"
        return 200, f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{body}</ListBucketResult>'


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """A cluster that lacks nothing; its S3 is outside of it."""
    made = Api(tmp_path, monkeypatch)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            made.asked.append(path)
            if path.startswith(("/api", "/version")):
                self.answer(*made.get(path), "application/json")
            else:
                bucket = path.strip("/").partition("/")[0]
                self.answer(*made.list_bucket(bucket, self.headers["Authorization"] or ""), "application/xml")

        def do_POST(self) -> None:
            made.asked.append(self.path)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(*made.review(self.path.rpartition("/")[2], body), "application/json")

        def answer(self, status: int, body: str, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    for name in (*VARIABLES, "KFP_ENDPOINT", "KF_PIPELINES_ENDPOINT", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.port = server.server_port
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    made.configure(made.url)
    for name in ("ConfigMap/cloc/settings", "ConfigMap/kubeflow-cloc/cloc"):
        made.named(name)["data"]["s3-endpoint"] = made.url
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()


def doctor(*options: str, settings: tuple[str, ...] = SETTINGS) -> Result:
    overrides = [text for setting in settings for text in ("-S", setting)]
    return CliRunner().invoke(cloc, ["doctor", "--cluster", "--preset", "demo", *overrides, *options])


def report(*options: str, settings: tuple[str, ...] = SETTINGS) -> dict[str, tuple[str, str]]:
    """Outcome and detail of each check."""
    result = doctor("--json", *options, settings=settings)
    told = json.loads(result.stdout)
    assert told["ok"] == (result.exit_code == 0)
    assert told["ok"] or isinstance(result.exception, ConfigError | DataError), result.exception
    assert SECRET not in result.output
    assert all("\n" not in item["detail"] for item in told["checks"])
    return {item["name"]: (item["outcome"], item["detail"]) for item in told["checks"]}


def by(found: dict[str, tuple[str, str]], outcome: str) -> set[str]:
    return {name for name, (each, _) in found.items() if each == outcome}


def test_golden_output_of_a_good_cluster(api: Api) -> None:
    result = doctor()
    assert result.exit_code == 0, result.output
    text = re.sub(r"[ \d]{3}\.\d{3} s", "  0.000 s", result.output).replace(str(api.port), "PORT")
    if os.environ.get("CLOC_REGENERATE"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text(), f"CLOC_REGENERATE=1 pytest {Path(__file__).name} -k golden writes it anew"
    assert text.count("✓") == len(CHECKS)


def test_rights_are_those_of_the_role() -> None:
    """What is asked about is what infra/k8s gives, which tests/infra hold against what TorchX does."""
    role = named(golden("local"), "Role/cloc-training/cloc-launcher")
    given = {
        (verb, group, resource)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert {(right.verb, right.group, right.resource) for right in LAUNCH} == given


def test_keys_are_those_that_tasks_read() -> None:
    from pipelines.resources import CONFIG_MAP, SECRETS

    looked_at = {**objects._TASKS_SECRETS, **objects._CAPTIONER_SECRETS}
    assert {name: tuple(keys) for name, keys in SECRETS.items()} == looked_at
    assert CONFIG_MAP == "cloc"


def test_the_captioner_key_is_wanted_where_it_is_asked(api: Api) -> None:
    asks = (*SETTINGS, "captioning.backend=openai", "captioning.endpoint.base_url=http://captioner:8000/v1")
    assert "kubeflow-cloc/cloc-captioner" in report(settings=asks)["secrets"][1]
    api.remove("Secret/kubeflow-cloc/cloc-captioner")
    assert by(report(), "failed") == set()
    assert by(report(settings=asks), "failed") == {"secrets"}


def test_without_a_kube_config(api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    for settings in (SETTINGS, ()):
        found = report(settings=settings)
        assert by(found, "failed") == {"API server"}
        assert by(found, "skipped") == set(CHECKS) - {"API server"}
        assert found["API server"][1].startswith("there is no cluster (")
        assert "set KUBECONFIG, or log in" in found["API server"][1]
    assert not api.asked


def test_unreachable(api: Api) -> None:
    api.configure(f"http://127.0.0.1:{free_port()}")
    found = report()
    assert by(found, "failed") == {"API server"}
    assert "cannot be reached" in found["API server"][1]


def service(api: Api, name: str) -> None:
    api.services.pop(name)


def test_a_login_that_has_ended(api: Api) -> None:
    api.forbidden = ("/version/",)
    found = report()
    assert by(found, "failed") == {"API server"}
    assert found["API server"][1].endswith("answers 403 Forbidden: log in to the cluster anew")


def replaced(api: Api, name: str, key: str, value: str) -> None:
    api.named(name)["data"][key] = base64.b64encode(value.encode()).decode()


FAULTS: dict[str, tuple[Callable[[Api], Any], str, str]] = {
    "no Volcano": (lambda a: a.interfaces.pop("batch.volcano.sh/v1alpha1"), "Volcano", "install Volcano"),
    "an old Volcano": (
        lambda a: a.interfaces["scheduling.volcano.sh/v1beta1"].remove("podgroups"),
        "Volcano",
        "has no podgroups: install Volcano",
    ),
    "no Kubeflow": (lambda a: a.interfaces.pop("kubeflow.org/v1beta1"), "Kubeflow", "install Kubeflow Pipelines"),
    "a namespace that goes": (
        lambda a: a.named("Namespace/kubeflow-cloc").update(status={"phase": "Terminating"}),
        "namespaces",
        "'kubeflow-cloc' is being removed",
    ),
    "a closed queue": (
        lambda a: a.named("Queue/cloc-training").update(status={"state": "Closed"}),
        "queue",
        "cloc-training is Closed",
    ),
    "no priority class": (lambda a: a.remove("PriorityClass/cloc-training"), "priority class", "kubectl apply -k"),
    "a config map that lacks a key": (
        lambda a: a.named("ConfigMap/kubeflow-cloc/cloc")["data"].pop("mlflow-tracking-uri"),
        "config map",
        "kubeflow-cloc/cloc lacks mlflow-tracking-uri",
    ),
    "another S3 than the services'": (
        lambda a: a.named("ConfigMap/cloc/settings")["data"].update({"s3-endpoint": "http://another"}),
        "config map",
        "and cloc/settings http://another: apply the overlay anew",
    ),
    "a URL that is none": (
        lambda a: a.named("ConfigMap/kubeflow-cloc/cloc")["data"].update({"mlflow-tracking-uri": "mlflow:5000"}),
        "config map",
        "mlflow-tracking-uri: 'mlflow:5000' is no URL as in http://host:port",
    ),
    "a password in the open": (
        lambda a: a.named("ConfigMap/kubeflow-cloc/cloc")["data"].update(
            {"mlflow-tracking-uri": f"http://cloc:{SECRET}@mlflow:5000"}
        ),
        "config map",
        "mlflow-tracking-uri holds a user or password for all to read: keep it in a secret",
    ),
    "no secret": (lambda a: a.remove("Secret/cloc/postgres"), "secrets", "there is no secret cloc/postgres"),
    "a wrong key": (
        lambda a: a.named("Secret/cloc-training/cloc-training").update(data={"ACCESS": "eA=="}),
        "secrets",
        "secret cloc-training/cloc-training lacks AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_USERNAME",
    ),
    "an example's password": (
        lambda a: replaced(a, "Secret/cloc/mlflow", "session-key", "replace-me"),
        "secrets",
        "secret cloc/mlflow: session-key is still the example's",
    ),
    "a line's end": (
        lambda a: replaced(a, "Secret/kubeflow-cloc/cloc-mlflow", "password", f"{SECRET}\n"),
        "secrets",
        "password begins or ends with white space",
    ),
    "no account": (
        lambda a: a.remove("ServiceAccount/kubeflow-cloc/default-editor"),
        "accounts",
        "tasks-service-account",
    ),
    "a missing right": (
        lambda a: a.named("Role/cloc-training/cloc-launcher")["rules"][1]["verbs"].remove("update"),
        "tasks' rights",
        "kubeflow-cloc/default-editor may not update jobs/status.batch.volcano.sh in cloc-training: apply the overlay",
    ),
    "another account bound": (
        lambda a: a.named("RoleBinding/cloc-training/cloc-launcher")["subjects"][0].update(name="default"),
        "tasks' rights",
        "may not create jobs.batch.volcano.sh, get jobs.batch.volcano.sh",
    ),
    "ranks shut in": (
        lambda a: a.remove("NetworkPolicy/cloc-training/ranks"),
        "network policies",
        "cloc-training denies all and lacks ranks",
    ),
    "no storage class": (lambda a: a.remove("StorageClass/fast"), "storage class", "install a provisioner"),
    "a claim that waits": (
        lambda a: a.named("PersistentVolumeClaim/cloc/data-postgres-0").update(status={"phase": "Pending"}),
        "volume claims",
        "kubectl describe persistentvolumeclaim -n cloc data-postgres-0 says why",
    ),
    "one node less": (lambda a: a.remove("Node/gpu-1"), "nodes", "have room for 1"),
    "no GPU": (
        lambda a: [a.named(f"Node/gpu-{n}")["status"]["allocatable"].pop("nvidia.com/gpu") for n in range(2)],
        "nodes",
        "2 pods of 8 cpu, 64 GiB memory, 8 nvidia.com/gpu have room for 0 (2 nodes: room for 0; "
        "1 node: without the label nvidia.com/gpu.present=true)",
    ),
    "a node of others": (
        lambda a: a.named("Node/gpu-0")["spec"]["taints"].append({"key": "team", "value": "x", "effect": "NoExecute"}),
        "nodes",
        "tainted team=x:NoExecute",
    ),
    "a cordoned node": (lambda a: a.named("Node/gpu-0")["spec"].update(unschedulable=True), "nodes", "cordoned"),
    "a small quota": (
        lambda a: a.named("ResourceQuota/cloc-training/training")["status"]["hard"].update(
            {"requests.memory": "100Gi"}
        ),
        "quota",
        "requests.memory: 128 GiB asked for, 100 GiB allowed, so that the job waits for ever",
    ),
    "a small queue": (
        lambda a: a.named("Queue/cloc-training")["spec"]["capability"].update({"nvidia.com/gpu": "8"}),
        "quota",
        "queue cloc-training: nvidia.com/gpu: 16 asked for, 8 allowed",
    ),
    "no MLflow": (lambda a: service(a, MLFLOW), "MLflow", "there is no service cloc/mlflow: install MLflow"),
    "MLflow without pods": (
        lambda a: a.services.update({MLFLOW: None}),
        "MLflow",
        "no pod of cloc/mlflow is ready: kubectl get pods -n cloc",
    ),
    "another port": (
        lambda a: a.services.update({MLFLOW: {"/health": status_of(503, "ServiceUnavailable", "no service port 1")}}),
        "MLflow",
        "cloc/mlflow has no port 5000: correct the URL of MLflow",
    ),
    "another MLflow": (lambda a: a.services.update({MLFLOW: {}}), "MLflow", "answers 404 to /health"),
    "another Kubeflow": (
        lambda a: a.services.update({PIPELINES: {"/apis/v2beta1/healthz": (200, "<html>")}}),
        "Kubeflow API",
        "not as Kubeflow Pipelines 2 does",
    ),
    "no bucket": (lambda a: setattr(a, "bucket", "b"), "S3", "there is no bucket 'example-cloc'"),
    "refused keys": (
        lambda a: replaced(a, "Secret/kubeflow-cloc/cloc-s3", "access-key", "unknown"),
        "S3",
        "with the keys of secret kubeflow-cloc/cloc-s3: s3://example-cloc/cloc-doctor: ",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_by_its_check_alone(api: Api, fault: str) -> None:
    spoil, name, told = FAULTS[fault]
    spoil(api)
    found = report()
    assert by(found, "failed") == {name}, found
    assert told in found[name][1]
    assert not by(found, "warning")


def policies_gone(api: Api) -> None:
    for item in of_kind(api.items, "NetworkPolicy"):
        api.items.remove(item)


DOUBTS: dict[str, tuple[Callable[[Api], Any], str, str]] = {
    "a lax training": (
        lambda a: a.named("Namespace/cloc-training")["metadata"]["labels"].update(
            {"pod-security.kubernetes.io/enforce": "baseline"}
        ),
        "pod security",
        "kubectl label --overwrite namespace cloc-training pod-security.kubernetes.io/enforce=restricted",
    ),
    "lax services": (
        lambda a: a.named("Namespace/cloc")["metadata"].pop("labels"),
        "pod security",
        "cloc lets pods be privileged: kubectl label",
    ),
    "no controllers": (lambda a: a.named("Queue/cloc-training").pop("status"), "queue", "kubectl get pods -n volcano"),
    "a token for ranks": (
        lambda a: a.named("ServiceAccount/cloc-training/cloc-trainer").pop("automountServiceAccountToken"),
        "accounts",
        "automountServiceAccountToken to false",
    ),
    "an administrator": (
        lambda a: a.granted.add((TASKS, "*", "*", "*", "")),
        "tasks' rights",
        "kubeflow-cloc/default-editor may do everything everywhere, and so may each run's code: unbind cluster-admin",
    ),
    "a reader of secrets": (
        lambda a: a.granted.add(("system:serviceaccount:cloc-training:cloc-trainer", "get", "", "secrets", "cloc")),
        "tasks' rights",
        "cloc-training/cloc-trainer may get secrets in cloc, of which it has no use",
    ),
    "reviews forbidden": (
        lambda a: setattr(a, "forbidden", ("subjectaccessreviews",)),
        "tasks' rights",
        "this user may not read the rights of kubeflow-cloc/default-editor",
    ),
    "no own rights": (lambda a: a.granted.clear(), "own rights", "`cloc pretrain` from here is refused"),
    "no policies": (policies_gone, "network policies", "cloc has no policy default-deny"),
    "no default class": (
        lambda a: a.named("StorageClass/fast")["metadata"].pop("annotations"),
        "storage class",
        "none of fast is the default",
    ),
    "nodes unseen": (lambda a: setattr(a, "forbidden", ("/nodes",)), "nodes", "this user may not read the nodes"),
    "a quota in use": (
        lambda a: a.named("ResourceQuota/cloc-training/training")["status"]["used"].update(
            {"requests.nvidia.com/gpu": "1020"}
        ),
        "quota",
        "requests.nvidia.com/gpu: 16 asked for, 1024 allowed, 1020 in use: the job waits for others to end",
    ),
    "no quota": (lambda a: a.remove("ResourceQuota/cloc-training/training"), "quota", "cloc-training has no quota"),
    "no way through": (
        lambda a: setattr(a, "forbidden", ("/proxy/health",)),
        "MLflow",
        "kubectl port-forward -n cloc service/mlflow 5000:5000, then curl http://localhost:5000/health",
    ),
    "policies let nobody in": (
        lambda a: a.services.update(
            {MLFLOW: {"/health": status_of(503, "ServiceUnavailable", "error trying to reach")}}
        ),
        "MLflow",
        "the API server does not reach cloc/mlflow",
    ),
    "a login": (
        lambda a: a.services.update({PIPELINES: {"/apis/v2beta1/healthz": (401, "")}}),
        "Kubeflow API",
        "answers 401",
    ),
}


@pytest.mark.parametrize("doubt", DOUBTS)
def test_a_doubt_is_a_warning(api: Api, doubt: str) -> None:
    spoil, name, told = DOUBTS[doubt]
    spoil(api)
    found = report()
    assert not by(found, "failed"), found
    assert by(found, "warning") == {name}, found
    assert told in found[name][1]


def test_nothing_of_cloc_is_there(api: Api) -> None:
    """An empty cluster: what can be known is told, and what follows from it is skipped."""
    api.items = [node("gpu-0", gpus=8), node("gpu-1", gpus=8)]
    api.interfaces, api.services, api.granted = {}, {}, set()
    found = report()
    fix = "kubectl apply -k infra/k8s/overlays/OVERLAY makes it"
    assert found["namespaces"] == ("failed", f"there is no namespace 'cloc', no namespace 'cloc-training': {fix}")
    assert by(found, "failed") == {
        *("Volcano", "Kubeflow", "overlay settings", "namespaces", "queue", "priority class"),
        *("storage class", "Kubeflow API"),
    }
    assert found["config map"] == ("skipped", "the config map cloc/settings does not say what tasks-namespace is")
    assert found["secrets"] == ("skipped", "there is no namespace cloc, cloc-training")
    assert not by(found, "warning")


def test_s3_within_the_cluster_is_asked_through_the_api_server(api: Api) -> None:
    endpoint = "http://minio.cloc.svc.cluster.local:9000"
    for name in ("ConfigMap/cloc/settings", "ConfigMap/kubeflow-cloc/cloc"):
        api.named(name)["data"]["s3-endpoint"] = endpoint
    api.services["cloc/http:minio:9000"] = {"/": (403, "<Error><Code>AccessDenied</Code></Error>")}
    outcome, detail = report()["S3"]
    assert outcome == "warning"
    assert "answers 403 through the API server" in detail
    assert "AWS_ENDPOINT_URL=http://localhost:9000 cloc storage check s3://example-cloc/" in detail
    api.services["cloc/http:minio:9000"] = None
    assert report()["S3"][0] == "failed"


def test_in_a_pod_services_are_asked_directly(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    for name in ("ConfigMap/cloc/settings", "ConfigMap/kubeflow-cloc/cloc"):
        api.named(name)["data"]["mlflow-tracking-uri"] = f"http://127.0.0.1:{free_port()}"
    api.granted.clear()
    found = report("--skip", "Kubeflow API")
    assert by(found, "failed") == {"own rights", "MLflow"}, "the account of a pod is who launches"
    assert "cannot be reached" in found["MLflow"][1]
    assert not [path for path in api.asked if "/proxy/" in path]


def test_the_session_of_another_is_not_shown_to_s3(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "mine")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    assert report()["S3"][0] == "passed"
    assert (os.environ["AWS_SESSION_TOKEN"], os.environ["AWS_ACCESS_KEY_ID"]) == ("mine", "mine")
    assert "AWS_ENDPOINT_URL" not in os.environ


def test_without_a_training_job_of_its_own(api: Api) -> None:
    """Names are those that infra/k8s makes, and nobody knows what a run will ask for."""
    found = report(settings=())
    assert not by(found, "failed") | by(found, "warning"), found
    for number in range(2):
        api.remove(f"Node/gpu-{number}")
    outcome, detail = report(settings=("train.device=auto",))["nodes"]
    assert (outcome, detail) == (
        "warning",
        "1 node, 0 nvidia.com/gpu: stages run on CPUs; install the device plugin that offers nvidia.com/gpu",
    )


def test_without_torchx(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloc.training.launch", None)
    found = report()
    assert by(found, "warning") == {"nodes", "quota"}
    assert found["nodes"][1].endswith("pip install 'cloc[train]'")


def test_a_queue_that_may_not_be_read_hides_no_quota(api: Api) -> None:
    api.forbidden = ("/queues/cloc-training",)
    assert by(report(), "warning") == {"queue"}
    api.named("ResourceQuota/cloc-training/training")["status"]["hard"]["pods"] = "1"
    found = report()
    assert by(found, "failed") == {"quota"}
    assert "pods: 2 asked for, 1 allowed" in found["quota"][1]


def test_the_pipeline_server_that_is_named_is_asked(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    assert by(report(), "failed") == {"Kubeflow API"}
    monkeypatch.setenv("KFP_ENDPOINT", "localhost:8080")
    assert "KFP_ENDPOINT: 'localhost:8080' is no URL" in report()["Kubeflow API"][1]


def test_claims_that_the_training_names(api: Api) -> None:
    found = report(settings=(*SETTINGS, "train.kubernetes.volume_claims=['scratch:/scratch']"))
    assert by(found, "failed") == {"volume claims"}
    assert "there is no volume claim cloc-training/scratch: create it, or correct" in found["volume claims"][1]


@pytest.mark.parametrize("option", [("--data", "x"), ("--role", "label"), ("--skip", "disk")])
def test_options_of_another_doctor(api: Api, option: tuple[str, str]) -> None:
    result = doctor(*option)
    assert isinstance(result.exception, ConfigError)
    assert option[0] in str(result.exception)
    assert not api.asked
