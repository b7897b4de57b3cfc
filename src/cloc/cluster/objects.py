"""Objects of the cluster: what Volcano and Kubeflow install, and what infra/k8s makes."""

import base64
from typing import Any

from cloc.cluster.site import SERVICES, Site, Tally, checked_url, reached, read
from cloc.errors import ConfigError
from cloc.training.doctor.registry import Subject, Warn

Interfaces = dict[tuple[str, str], tuple[str, ...]]
Keys = dict[str, tuple[str, ...]]

_VOLCANO: Interfaces = {
    ("batch.volcano.sh", "v1alpha1"): ("jobs",),
    ("scheduling.volcano.sh", "v1beta1"): ("queues", "podgroups"),
}
_KUBEFLOW: Interfaces = {
    ("argoproj.io", "v1alpha1"): ("workflows",),
    ("kubeflow.org", "v1beta1"): ("scheduledworkflows",),
}
_SETTINGS = ("s3-endpoint", "s3-region", "bucket", "tasks-namespace", "tasks-service-account")
_CONFIG = ("mlflow-tracking-uri", "s3-endpoint")
_S3 = ("access-key", "secret-key")
_USER = ("username", "password")
_SERVICES_SECRETS: Keys = {
    "s3": _S3,
    "postgres": ("password",),
    "mlflow": ("admin-username", "admin-password", "session-key"),
    "mlflow-user": _USER,
}
_TASKS_SECRETS: Keys = {"cloc-s3": _S3, "cloc-mlflow": _USER}
_CAPTIONER_SECRETS: Keys = {"cloc-captioner": ("api-key",)}
_RANKS_SECRETS: Keys = {
    "cloc-training": (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
    )
}
_EXAMPLE = "replace-me"  # what secrets/*.env.example say
_LEVEL = "pod-security.kubernetes.io/enforce"
_DENY = "default-deny"
_SERVICES_POLICIES = ("names", "mlflow", "postgres")
_TRAINING_POLICIES = ("names", "ranks")


def volcano(subject: Subject) -> str:
    """Volcano's interfaces are there."""
    return _interfaces(subject, _VOLCANO, fix="install Volcano (infra/local/up has its version and manifest)")


def kubeflow(subject: Subject) -> str:
    """Those of Kubeflow Pipelines are there."""
    return _interfaces(
        subject, _KUBEFLOW, fix="install Kubeflow Pipelines (infra/local/up has its version and manifests)"
    )


def _interfaces(subject: Subject, wanted: Interfaces, *, fix: str) -> str:
    from kubernetes.client import CustomObjectsApi

    api, tally, found = CustomObjectsApi(reached(subject).api), Tally(), []
    for (group, version), names in wanted.items():
        answer = tally.read(f"API {group}/{version}", api.get_api_resources, group, version, fix=fix)
        known = {item.name for item in answer.resources} if answer else set(names)
        tally.misses += [f"{group}/{version} has no {name}: {fix}" for name in names if name not in known]
        found += [f"{name}.{group}/{version}" for name in names]
    return tally.verdict(found)


def settings(subject: Subject) -> str:
    """The settings of the overlay that was applied are there, which say where the rest is."""
    site = reached(subject)
    from kubernetes.client import CoreV1Api

    what = f"config map {SERVICES}/settings"
    site.settings = _text(read(what, CoreV1Api(site.api).read_namespaced_config_map, "settings", SERVICES))
    _need(site.settings, _SETTINGS, what, fix="add it to the overlay's settings.env, and apply it")
    checked_url(site.settings["s3-endpoint"], where=f"{what}: s3-endpoint")
    return ", ".join(f"{key}: {site.settings[key]}" for key in _SETTINGS)


def namespaces(subject: Subject) -> str:
    """The namespaces of services, training and tasks are there."""
    site, tally = reached(subject), Tally()
    from kubernetes.client import CoreV1Api

    wanted = [SERVICES, site.training.namespace, *([site.tasks] if site.settings else ())]
    for name in wanted:
        found = tally.read(f"namespace {name!r}", CoreV1Api(site.api).read_namespace, name)
        if found is None and not tally.doubts:
            site.absent.add(name)
        if found and found.status and found.status.phase == "Terminating":
            tally.misses.append(f"namespace {name!r} is being removed: wait until it is gone, then make it anew")
    return tally.verdict(wanted)


def pod_security(subject: Subject) -> str:
    """Namespaces hold their pods to what these need."""
    site, tally, found = reached(subject), Tally(), []
    from kubernetes.client import CoreV1Api

    places = (SERVICES, site.training.namespace)
    site.need(*places)
    for name in places:
        answer = tally.read(f"namespace {name!r}", CoreV1Api(site.api).read_namespace, name)
        if answer is None:
            continue
        level = (answer.metadata.labels or {}).get(_LEVEL, "privileged")
        found.append(f"{name}: {level}")
        if level != "restricted":
            tally.doubts.append(
                f"{name} lets pods be {level}: kubectl label --overwrite namespace {name} {_LEVEL}=restricted"
            )
    return tally.verdict(found)


def queue(subject: Subject) -> str:
    """The queue of the training is open."""
    site = reached(subject)
    name = site.training.queue
    from kubernetes.client import CustomObjectsApi

    method = CustomObjectsApi(site.api).get_cluster_custom_object
    found = read(f"Volcano queue {name!r}", method, "scheduling.volcano.sh", "v1beta1", "queues", name)
    state = found.get("status", {}).get("state", "")
    if not state:
        raise Warn(f"{name} has no state, as if Volcano's controllers did not run: kubectl get pods -n volcano-system")
    if state != "Open":
        raise ConfigError(f"{name} is {state}, and jobs wait in it for ever: open it (spec.state), or take another")
    return f"{name}, open"


def priority_class(subject: Subject) -> str:
    """The priority class of the training is there."""
    site = reached(subject)
    name = site.training.priority_class
    if not name:
        return "none is named"
    from kubernetes.client import SchedulingV1Api

    found = read(f"priority class {name!r}", SchedulingV1Api(site.api).read_priority_class, name)
    return f"{name}, {found.value:,}"


def config_map(subject: Subject) -> str:
    """Tasks are told where S3 and MLflow are."""
    site = reached(subject)
    what = f"config map {site.tasks}/cloc"
    from kubernetes.client import CoreV1Api

    found = _text(read(what, CoreV1Api(site.api).read_namespaced_config_map, "cloc", site.tasks))
    _need(found, _CONFIG, what, fix="apply the overlay anew")
    site.config_map = {key: checked_url(found[key], where=f"{what}: {key}") for key in _CONFIG}
    if found["s3-endpoint"] != site.setting("s3-endpoint"):
        raise ConfigError(
            f"{what} says s3-endpoint {found['s3-endpoint']}, and {SERVICES}/settings {site.setting('s3-endpoint')}: "
            "apply the overlay anew"
        )
    return ", ".join(f"{key}: {found[key]}" for key in _CONFIG)


def _text(config_map: Any) -> dict[str, str]:
    return dict(config_map.data or {})


def _need(found: dict[str, str], keys: tuple[str, ...], what: str, *, fix: str) -> None:
    missing = [key for key in keys if not found.get(key)]
    if missing:
        raise ConfigError(f"{what} lacks {', '.join(missing)}: {fix}")


def secrets(subject: Subject) -> str:
    """Secrets are there with the keys that are read, and somebody has filled them in. Values are never told."""
    site, tally = reached(subject), Tally()
    site.need(SERVICES, site.training.namespace)
    ranks: Keys = {name: _RANKS_SECRETS.get(name, ()) for name in site.training.secrets}
    if not ranks:
        tally.doubts.append("train.kubernetes.secrets names none: ranks have no credentials of S3 and MLflow")
    places = [(SERVICES, _SERVICES_SECRETS), (site.training.namespace, ranks)]
    if site.settings:
        site.need(site.tasks)
        is_asked = subject.config.captioning.backend == "openai"
        places.append((site.tasks, _TASKS_SECRETS | (_CAPTIONER_SECRETS if is_asked else {})))
    names = [f"{place}/{name}" for place, wanted in places for name in wanted]
    for place, wanted in places:
        for name, keys in wanted.items():
            _secret(site, place, name, keys, tally)
    return tally.verdict(names)


def _secret(site: Site, place: str, name: str, keys: tuple[str, ...], tally: Tally) -> None:
    from kubernetes.client import CoreV1Api

    what = f"secret {place}/{name}"
    fix = "fill in the overlay's secrets/*.env and apply it, or have the tool that makes your secrets make it"
    found = tally.read(what, CoreV1Api(site.api).read_namespaced_secret, name, place, fix=fix)
    if found is None:
        return
    held = {key: base64.b64decode(text).decode(errors="replace") for key, text in (found.data or {}).items()}
    missing = [key for key in keys if not held.get(key)]
    if missing:
        tally.misses.append(f"{what} lacks {', '.join(missing)}: {fix}")
    for key in keys:
        if held.get(key) == _EXAMPLE:
            tally.misses.append(f"{what}: {key} is still the example's: {fix}")
        elif held.get(key, "") != held.get(key, "").strip():
            tally.misses.append(f"{what}: {key} begins or ends with white space (a line's end?): {fix}")
    if name == "cloc-s3" and not missing:
        site.s3_keys = (held["access-key"], held["secret-key"])


def accounts(subject: Subject) -> str:
    """The service accounts of ranks and tasks are there; that of ranks has no token."""
    site, tally, found = reached(subject), Tally(), []
    site.need(site.training.namespace)
    from kubernetes.client import CoreV1Api

    api = CoreV1Api(site.api)
    place, name = site.training.namespace, site.training.service_account or "default"
    what = f"service account {place}/{name}"
    ranks = tally.read(what, api.read_namespaced_service_account, name, place)
    if ranks and ranks.automount_service_account_token is not False:
        tally.doubts.append(
            f"{what} hands its pods a token for Kubernetes, of which ranks have no use: set its "
            "automountServiceAccountToken to false"
        )
    found.append(f"{place}/{name}")
    if site.settings:
        name = site.setting("tasks-service-account")
        fix = "install Kubeflow, make the profile, or correct tasks-service-account in settings.env"
        what = f"service account {site.tasks}/{name}"
        tally.read(what, api.read_namespaced_service_account, name, site.tasks, fix=fix)
        found.append(f"{site.tasks}/{name}")
    return tally.verdict(found)


def network_policies(subject: Subject) -> str:
    """Nothing is reached but what a policy names, and what is needed is named."""
    site, tally, found = reached(subject), Tally(), []
    site.need(SERVICES, site.training.namespace)
    from kubernetes.client import NetworkingV1Api

    api = NetworkingV1Api(site.api)
    for place, wanted in ((SERVICES, _SERVICES_POLICIES), (site.training.namespace, _TRAINING_POLICIES)):
        answer = tally.read(f"network policies of {place}", api.list_namespaced_network_policy, place)
        if answer is None:
            continue
        names = {item.metadata.name for item in answer.items}
        found.append(f"{place}: {len(names)}")
        missing = [name for name in wanted if name not in names]
        if _DENY not in names:
            tally.doubts.append(f"{place} has no policy {_DENY}, so that every pod of the cluster reaches it")
        elif missing:
            tally.misses.append(f"{place} denies all and lacks {', '.join(missing)}: apply the overlay anew")
    return tally.verdict(found)
