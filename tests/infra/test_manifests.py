"""The manifests of infra/k8s: rendered as committed, known to Kubernetes and Volcano field by field, and within policy.

The golden files are written anew by: CLOC_REGENERATE=1 pytest tests/infra/test_manifests.py -k golden
"""

import os
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from pipelines.resources import CONFIG_MAP, S3_SECRET
from tests.infra import policies, volcano
from tests.infra.manifests import GOLDEN, K8S, OVERLAYS, ROOT, Object, golden, name_of, named, of_kind, render

# The oldest that Kubernetes still mends and the one that infra/local runs.
VERSIONS = ("1.33", "1.35")
TASKS = {"local": "kubeflow", "cloud": "kubeflow-cloc"}
CLIENTS = {
    overlay: {
        "postgres": ["mlflow"],
        "mlflow": [f"namespace {tasks}", "mlflow-user", "ranks"],
        **(
            {"minio": [f"namespace {tasks}", "mlflow", "minio-bucket", "ranks"]}
            if overlay == "local"
            else {"captioner": [f"namespace {tasks}", "namespace monitoring"]}
        ),
    }
    for overlay, tasks in TASKS.items()
}


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def items(overlay: str) -> list[Object]:
    return golden(overlay)


needs_kubectl = pytest.mark.skipif(
    not shutil.which("kubectl"), reason="kubectl, which renders the manifests, is not installed"
)


@needs_kubectl
def test_overlay_renders_as_its_golden_file(overlay: str, tmp_path: Path) -> None:
    rendered = render(overlay, tmp_path)
    path = GOLDEN / f"{overlay}.yaml"
    if os.environ.get("CLOC_REGENERATE"):
        path.write_text(yaml.safe_dump_all(rendered))
    found, wanted = ({name_of(item): item for item in some} for some in (rendered, golden(overlay)))
    assert found == wanted, f"CLOC_REGENERATE=1 pytest {Path(__file__).name} -k golden writes {path} anew"


@needs_kubectl
def test_cloud_may_have_its_secrets_made_by_another_tool(tmp_path: Path) -> None:
    def change(_: Path, kustomization: Object) -> None:
        del kustomization["secretGenerator"]
        parts = kustomization["components"]
        kustomization["components"] = [part for part in parts if not part.endswith("credentials")]

    found = {name_of(item): item for item in render("cloud", tmp_path, change)}
    wanted = {name_of(item): item for item in golden("cloud") if item["kind"] != "Secret"}
    assert found == wanted


@needs_kubectl
def test_cloud_may_have_minio(tmp_path: Path) -> None:
    def change(folder: Path, kustomization: Object) -> None:
        kustomization["components"].insert(0, "../../components/minio")
        secret = folder.parent / "local" / "secrets" / "minio.env"
        shutil.copy(secret, folder / "secrets")
        kustomization["secretGenerator"].append({"name": "minio", "namespace": "cloc", "envs": ["secrets/minio.env"]})

    items = render("cloud", tmp_path, change)
    minio = [*CLIENTS["local"]["minio"][1:], f"namespace {TASKS['cloud']}"]
    assert policies.network(items, {**CLIENTS["cloud"], "minio": minio}) == []
    assert policies.references(items) == []
    assert policies.quotas(items) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_known_field_by_field(items: list[Object], version: str) -> None:
    assert items
    for item in items:
        if (item["apiVersion"], item["kind"]) in volcano.SCHEMAS:
            volcano.validate(item, kubernetes=version)
        else:
            kubernetes_validate.validate(item, version, strict=True)


def test_every_object_is_named_once(items: list[Object]) -> None:
    names = [name_of(item) for item in items]
    assert len(names) == len(set(names))


def test_every_namespaced_object_is_in_a_namespace_of_the_overlay(overlay: str, items: list[Object]) -> None:
    cluster_wide = {"Namespace", "PriorityClass", "Queue"}
    own = {item["metadata"]["name"] for item in of_kind(items, "Namespace")}
    assert own == {"cloc", "cloc-training"}
    for item in items:
        namespace = item["metadata"].get("namespace")
        if item["kind"] in cluster_wide:
            assert namespace is None, name_of(item)
        else:
            assert namespace in {*own, TASKS[overlay]}, name_of(item)


@pytest.mark.parametrize(
    "policy",
    [
        policies.images,
        policies.resources,
        policies.restricted,
        policies.hardening,
        policies.pod_security,
        policies.probes,
        policies.secrets,
        policies.rights,
        policies.references,
        policies.quotas,
    ],
)
def test_policy(items: list[Object], policy) -> None:
    assert policy(items) == []


def test_services_are_reached_by_their_clients_alone(overlay: str, items: list[Object]) -> None:
    assert policies.network(items, CLIENTS[overlay]) == []
    assert set(CLIENTS[overlay]) == {item["metadata"]["name"] for item in of_kind(items, "Service")}


def test_tasks_find_what_they_name(overlay: str, items: list[Object]) -> None:
    wanted = policies.contract(
        items,
        namespace=TASKS[overlay],
        config_map={CONFIG_MAP: ["mlflow-tracking-uri", "s3-endpoint"]},
        secret={S3_SECRET: ["access-key", "secret-key"], "cloc-mlflow": ["username", "password"]},
    )
    assert wanted == []
    endpoint = named(items, "ConfigMap/cloc/settings")["data"]["s3-endpoint"]
    assert named(items, f"ConfigMap/{TASKS[overlay]}/{CONFIG_MAP}")["data"]["s3-endpoint"] == endpoint


def test_compiled_pipeline_names_nothing_that_is_not_there(overlay: str, items: list[Object]) -> None:
    """The compiled YAML's second document says what tasks take from ConfigMaps and Secrets."""
    _, platform = yaml.safe_load_all((ROOT / "pipelines" / "cloc_pipeline.yaml").read_text())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    wanted: dict[str, dict[str, list[str]]] = {"configMap": {}, "secret": {}}
    for executor in executors:
        for source in executor.get("configMapAsEnv", []):
            if source.get("optional"):
                continue
            name = source.get("configMapName") or source["configMapNameParameter"]["runtimeValue"]["constant"]
            wanted["configMap"][name] = [pair["configMapKey"] for pair in source["keyToEnv"]]
        for source in executor.get("secretAsEnv", []):
            if source.get("optional"):
                continue
            name = source.get("secretName") or source["secretNameParameter"]["runtimeValue"]["constant"]
            wanted["secret"][name] = [pair["secretKey"] for pair in source["keyToEnv"]]
    assert wanted["configMap"]
    assert wanted["secret"]
    found = policies.contract(items, namespace=TASKS[overlay], config_map=wanted["configMap"], secret=wanted["secret"])
    assert found == []


def test_secrets_are_copied_whole(overlay: str, items: list[Object]) -> None:
    s3, user = (named(items, f"Secret/cloc/{name}")["data"] for name in ("s3", "mlflow-user"))
    assert named(items, f"Secret/{TASKS[overlay]}/{S3_SECRET}")["data"] == s3
    assert named(items, f"Secret/{TASKS[overlay]}/cloc-mlflow")["data"] == user
    assert named(items, "Secret/cloc-training/cloc-training")["data"] == {
        "AWS_ACCESS_KEY_ID": s3["access-key"],
        "AWS_SECRET_ACCESS_KEY": s3["secret-key"],
        "MLFLOW_TRACKING_USERNAME": user["username"],
        "MLFLOW_TRACKING_PASSWORD": user["password"],
    }


def test_tasks_namespace_and_account_are_said_once(overlay: str, items: list[Object]) -> None:
    settings = named(items, "ConfigMap/cloc/settings")["data"]
    assert settings["tasks-namespace"] == TASKS[overlay]
    (subject,) = named(items, "RoleBinding/cloc-training/cloc-launcher")["subjects"]
    assert (subject["namespace"], subject["name"]) == (TASKS[overlay], settings["tasks-service-account"])


def test_filled_in_secrets_stay_out_of_git() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "--", "infra/k8s"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert not [name for name in tracked if name.endswith(".env") and not name.endswith("/settings.env")]
    examples = [path.with_suffix("") for path in K8S.rglob("*.env.example")]
    assert examples
    for path in examples:
        done = subprocess.run(["git", "check-ignore", "--quiet", str(path)], cwd=ROOT, check=False)
        assert done.returncode == 0, f"git would take {path}"
