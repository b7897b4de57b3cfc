"""Every check of the manifests can fail: each is shown objects that are wrong in one way."""

import copy
from collections.abc import Callable
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from tests.infra import policies, volcano
from tests.infra.manifests import Object, containers, golden, named, pods
from tests.infra.test_manifests import CLIENTS

Change = Callable[[list[Object]], Any]


def container(items: list[Object], name: str = "Deployment/cloc/mlflow") -> Object:
    return named(items, name)["spec"]["template"]["spec"]["containers"][0]


def pod(items: list[Object], name: str = "Deployment/cloc/mlflow") -> Object:
    return named(items, name)["spec"]["template"]["spec"]


def context(items: list[Object]) -> Object:
    return container(items)["securityContext"]


def remove(items: list[Object], name: str) -> None:
    items.remove(named(items, name))


def rule(items: list[Object]) -> Object:
    return named(items, "Role/cloc-training/cloc-launcher")["rules"][0]


def ranks_host_path(items: list[Object]) -> None:
    job = copy.deepcopy(named(items, "Job/cloc/minio-bucket"))
    job["metadata"]["namespace"] = "cloc-training"
    job["spec"]["template"]["spec"]["hostNetwork"] = True
    items.append(job)


WRONG: dict[str, tuple[Callable[[list[Object]], list[str]], Change, str]] = {
    "latest": (policies.images, lambda o: container(o).update(image="ghcr.io/mlflow/mlflow:latest"), "no fixed"),
    "no tag": (policies.images, lambda o: container(o).update(image="ghcr.io/mlflow/mlflow"), "no fixed"),
    "no registry": (policies.images, lambda o: container(o).update(image="postgres:17.7"), "no registry"),
    "half a digest": (policies.images, lambda o: container(o).update(image="a.io/b:1.2@sha256:12"), "no fixed"),
    "no limit": (policies.resources, lambda o: container(o)["resources"]["limits"].pop("memory"), "limits of memory"),
    "no request": (policies.resources, lambda o: container(o)["resources"].pop("requests"), "requests of cpu"),
    "first container": (
        policies.resources,
        lambda o: pod(o)["initContainers"][0].pop("resources"),
        "mlflow/auth: no requests of cpu",
    ),
    "root": (policies.restricted, lambda o: pod(o)["securityContext"].update(runAsUser=0), "runAsNonRoot"),
    "perhaps root": (policies.restricted, lambda o: pod(o)["securityContext"].pop("runAsNonRoot"), "runAsNonRoot"),
    "escalation": (policies.restricted, lambda o: context(o).pop("allowPrivilegeEscalation"), "allowPrivilege"),
    "capabilities": (policies.restricted, lambda o: context(o).pop("capabilities"), "capabilities"),
    "more capabilities": (
        policies.restricted,
        lambda o: context(o)["capabilities"].update(add=["SYS_ADMIN"]),
        "adds capabilities",
    ),
    "no seccomp": (policies.restricted, lambda o: pod(o)["securityContext"].pop("seccompProfile"), "seccompProfile"),
    "unconfined": (
        policies.restricted,
        lambda o: context(o).update(seccompProfile={"type": "Unconfined"}),
        "seccompProfile",
    ),
    "privileged": (policies.baseline, lambda o: context(o).update(privileged=True), "privileged"),
    "host network": (policies.baseline, lambda o: pod(o).update(hostNetwork=True), "hostNetwork"),
    "host path": (
        policies.baseline,
        lambda o: pod(o)["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
        "hostPath",
    ),
    "host port": (policies.baseline, lambda o: container(o)["ports"][0].update(hostPort=80), "hostPort 80"),
    "volume": (
        policies.restricted,
        lambda o: pod(o)["volumes"].append({"name": "x", "nfs": {"server": "s", "path": "/"}}),
        "of another kind",
    ),
    "no user": (policies.hardening, lambda o: pod(o)["securityContext"].pop("runAsUser"), "runAsUser"),
    "token": (policies.hardening, lambda o: pod(o).pop("automountServiceAccountToken"), "automount"),
    "root file system": (policies.hardening, lambda o: context(o).pop("readOnlyRootFilesystem"), "readOnlyRoot"),
    "unlabelled namespace": (
        policies.pod_security,
        lambda o: named(o, "Namespace/cloc")["metadata"].pop("labels"),
        "cloc: pod security is None",
    ),
    "privileged namespace": (
        policies.pod_security,
        lambda o: named(o, "Namespace/cloc")["metadata"]["labels"].update(
            {"pod-security.kubernetes.io/enforce": "privileged"}
        ),
        "cloc: pod security is privileged",
    ),
    "refused pod": (policies.pod_security, lambda o: context(o).pop("capabilities"), "cloc (restricted) refuses"),
    "refused in training": (policies.pod_security, ranks_host_path, "cloc-training (restricted) refuses"),
    "no probe": (policies.probes, lambda o: container(o).pop("livenessProbe"), "mlflow: no livenessProbe"),
    "filled in": (
        policies.secrets,
        lambda o: named(o, "Secret/cloc/s3").update(stringData={"access-key": "AKIA1234"}),
        "access-key holds a value",
    ),
    "filled in, encoded": (
        policies.secrets,
        lambda o: named(o, "Secret/cloc/s3")["data"].update({"secret-key": "aHVudGVyMg=="}),
        "secret-key holds a value",
    ),
    "not wired": (policies.secrets, lambda o: named(o, "Secret/cloc-training/cloc-training").pop("data"), "is empty"),
    "in a ConfigMap": (
        policies.secrets,
        lambda o: named(o, "ConfigMap/cloc/settings")["data"].update({"password": "x"}),
        "password looks like a secret",
    ),
    "in an address": (
        policies.secrets,
        lambda o: named(o, "ConfigMap/cloc/settings")["data"].update({"url": "postgresql://a:b@c/d"}),
        "url looks like a secret",
    ),
    "in a variable": (
        policies.secrets,
        lambda o: container(o)["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}),
        "AWS_SECRET_ACCESS_KEY is in clear",
    ),
    "in a variable's address": (
        policies.secrets,
        lambda o: container(o)["env"].append({"name": "STORE", "value": "postgresql://mlflow:hunter2@postgres/x"}),
        "STORE is in clear",
    ),
    "in an argument": (
        policies.secrets,
        lambda o: container(o)["command"].append("--api-key=x"),
        "an argument is a secret",
    ),
    "any verb": (policies.rights, lambda o: rule(o).update(verbs=["*"]), "Role/cloc-training/cloc-launcher"),
    "any resource": (policies.rights, lambda o: rule(o).update(resources=["*"]), "Role/cloc-training/cloc-launcher"),
    "impersonation": (policies.rights, lambda o: rule(o)["verbs"].append("impersonate"), "cloc-launcher"),
    "reads secrets": (policies.rights, lambda o: rule(o)["resources"].append("secrets"), "reads Secrets"),
    "whole cluster": (
        policies.rights,
        lambda o: named(o, "Role/cloc-training/cloc-launcher").update(kind="ClusterRole"),
        "of the whole cluster",
    ),
    "binds a ClusterRole": (
        policies.rights,
        lambda o: named(o, "RoleBinding/cloc-training/cloc-launcher")["roleRef"].update(kind="ClusterRole"),
        "binds a ClusterRole",
    ),
    "no Secret": (policies.references, lambda o: remove(o, "Secret/cloc/postgres"), "no Secret cloc/postgres"),
    "no key": (
        policies.references,
        lambda o: named(o, "ConfigMap/cloc/settings")["data"].pop("bucket"),
        "has no bucket",
    ),
    "no script": (policies.references, lambda o: remove(o, "ConfigMap/cloc/minio-bucket"), "cloc/minio-bucket"),
    "no volume": (policies.references, lambda o: pod(o).pop("volumes"), "there is no volume auth"),
    "no Role": (
        policies.references,
        lambda o: remove(o, "Role/cloc-training/cloc-launcher"),
        "no Role cloc-training/cloc-launcher",
    ),
    "no port": (policies.references, lambda o: container(o).pop("ports"), "no pod serves its port 5000"),
    "other labels": (
        policies.references,
        lambda o: named(o, "Service/cloc/mlflow")["spec"]["selector"].update(x="y"),
        "no pod serves",
    ),
    "no account": (
        policies.references,
        lambda o: pod(o).update(serviceAccountName="nobody"),
        "no ServiceAccount cloc/nobody",
    ),
    "no quota": (policies.quotas, lambda o: remove(o, "ResourceQuota/cloc/services"), "cloc: no ResourceQuota"),
    "no defaults": (policies.quotas, lambda o: remove(o, "LimitRange/cloc/services"), "cloc: no LimitRange"),
    "small quota": (
        policies.quotas,
        lambda o: named(o, "ResourceQuota/cloc/services")["spec"]["hard"].update({"limits.memory": "4Gi"}),
        "limits.memory is 4Gi",
    ),
    "many pods": (
        policies.quotas,
        lambda o: named(o, "StatefulSet/cloc/minio")["spec"].update(replicas=9),
        "requests.storage is 100Gi",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_check_sees_it(wrong: str) -> None:
    check, change, message = WRONG[wrong]
    items = golden("local")
    assert check(items) == []
    change(items)
    assert any(message in line for line in check(items)), check(items)


def test_a_captioner_for_every_client_counts_against_the_quota() -> None:
    items = golden("cloud")
    named(items, "HorizontalPodAutoscaler/cloc/captioner")["spec"]["maxReplicas"] = 9
    assert any("requests.nvidia.com/gpu" in line for line in policies.quotas(items))


NETWORK: dict[str, tuple[Change, str]] = {
    "no way in": (lambda o: remove(o, "NetworkPolicy/cloc/postgres"), "mlflow does not reach postgres"),
    "no way out": (lambda o: remove(o, "NetworkPolicy/cloc-training/to-minio"), "ranks does not reach minio"),
    "not wired": (
        lambda o: named(o, "NetworkPolicy/cloc/mlflow")["spec"]["ingress"][0]["from"].pop(0),
        "namespace kubeflow does not reach mlflow",
    ),
    "another port": (
        lambda o: named(o, "NetworkPolicy/cloc/minio")["spec"]["ingress"][0]["ports"][0].update(port=9001),
        "mlflow does not reach minio",
    ),
    "too many": (
        lambda o: named(o, "NetworkPolicy/cloc/postgres")["spec"]["ingress"][0]["from"].append(
            {"namespaceSelector": {}}
        ),
        "namespace kubeflow reaches postgres",
    ),
    "no names": (lambda o: remove(o, "NetworkPolicy/cloc/names"), "its pods cannot ask for names"),
    "open": (lambda o: remove(o, "NetworkPolicy/cloc-training/default-deny"), "cloc-training: nothing denies"),
    "half open": (
        lambda o: named(o, "NetworkPolicy/cloc/default-deny")["spec"].update(policyTypes=["Ingress"]),
        "cloc: nothing denies",
    ),
    "unknown service": (
        lambda o: o.append(
            {**copy.deepcopy(named(o, "Service/cloc/mlflow")), "metadata": {"name": "new", "namespace": "cloc"}}
        ),
        "Service/cloc/new: who uses it is not said",
    ),
}


@pytest.mark.parametrize("wrong", NETWORK)
def test_network_check_sees_it(wrong: str) -> None:
    change, message = NETWORK[wrong]
    items = golden("local")
    change(items)
    found = policies.network(items, CLIENTS["local"])
    assert any(message in line for line in found), found


def test_contract_check_sees_what_is_not_there() -> None:
    items = golden("local")
    wanted = {"namespace": "kubeflow", "config_map": {"cloc": ["s3-endpoint"]}, "secret": {"cloc-s3": ["access-key"]}}
    assert policies.contract(items, **wanted) == []
    named(items, "Secret/kubeflow/cloc-s3")["data"].pop("access-key")
    assert policies.contract(items, **wanted) == ["Secret kubeflow/cloc-s3 has no access-key"]
    assert policies.contract(items, **{**wanted, "namespace": "elsewhere"}) == [
        "there is no ConfigMap elsewhere/cloc",
        "there is no Secret elsewhere/cloc-s3",
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda o: pod(o).update(nodeSelektor={}),
        lambda o: container(o).pop("name"),
        lambda o: container(o)["ports"][0].update(containerPort="http"),
        lambda o: named(o, "Deployment/cloc/mlflow")["spec"].pop("selector"),
    ],
    ids=["unknown field", "missing field", "wrong type", "no selector"],
)
def test_schema_sees_it(change: Change) -> None:
    items = golden("local")
    change(items)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(named(items, "Deployment/cloc/mlflow"), "1.35", strict=True)


@pytest.mark.parametrize(
    "spec",
    [
        {"weight": 0},
        {"weight": "1"},
        {"reclaimable": "yes"},
        {"capability": {"cpu": "many"}},
        {"capacity": {"cpu": "1"}},
        {"dequeueStrategy": "lifo"},
    ],
)
def test_queue_schema_sees_it(spec: Object) -> None:
    queue = named(golden("cloud"), "Queue/cloc-training")
    volcano.validate(queue, kubernetes="1.35")
    with pytest.raises(jsonschema.ValidationError):
        volcano.validate({**queue, "spec": {**queue["spec"], **spec}}, kubernetes="1.35")


def test_every_pod_is_looked_at() -> None:
    items = golden("local")
    assert {name.split("/")[2] for name, _ in pods(items)} == {
        "mlflow",
        "postgres",
        "minio",
        "minio-bucket",
        "mlflow-user",
    }
    assert [item["name"] for item in containers(dict(pods(items))["Deployment/cloc/mlflow"])] == ["auth", "mlflow"]
