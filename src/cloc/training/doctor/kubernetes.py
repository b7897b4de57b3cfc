"""The cluster of a training on Kubernetes: reachable, with what the job names; asked as the user of the kube config."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from cloc.config.schema import KubernetesConfig, TrainConfig
from cloc.errors import ConfigError
from cloc.training.doctor.registry import Skip, Subject, Warn, check

_TIMEOUT_S = 5
_QUEUES = ("scheduling.volcano.sh", "v1beta1", "queues")


@dataclass(frozen=True)
class Cluster:
    """A cluster that answered.

    Attributes:
        api: client of `kubernetes`.
        server: its URL.
        version: of its API server.
    """

    api: Any
    server: str
    version: str


def connect(train: TrainConfig) -> Cluster:
    """Asks the cluster of the kube config (or that this pod runs in) for its version.

    Raises:
        Skip: training is not on Kubernetes.
        ConfigError: there is no cluster, or it cannot be reached.
    """
    if train.scheduler != "kubernetes":
        raise Skip(f"train.scheduler is {train.scheduler}")
    from kubernetes import client
    from urllib3.exceptions import HTTPError

    from cloc.training.cluster import cluster_configuration

    settings = cluster_configuration()
    settings.retries = False
    api = client.ApiClient(settings)
    try:
        version = client.VersionApi(api).get_code(_request_timeout=_TIMEOUT_S).git_version
    except client.ApiException as error:
        raise ConfigError(
            f"{settings.host} answers {error.status} {error.reason}: log in to the cluster anew"
        ) from None
    except (HTTPError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"the cluster at {settings.host} cannot be reached ({reason})") from None
    return Cluster(api, settings.host, version)


@check("Kubernetes", "train")
def reachable(subject: Subject) -> str:
    """The API server answers."""
    subject.cluster = connect(subject.config.train)
    return f"{subject.cluster.server}, {subject.cluster.version}"


@check("namespace", "train")
def namespace(subject: Subject) -> str:
    """The job's namespace exists."""
    name = _settings(subject).namespace
    from kubernetes import client

    _exists(
        lambda: client.CoreV1Api(subject.cluster.api).read_namespace(name, _request_timeout=_TIMEOUT_S),
        "namespace",
        name,
    )
    return name


@check("queue", "train")
def queue(subject: Subject) -> str:
    """Volcano is installed, and has the job's queue, open."""
    name = _settings(subject).queue
    from kubernetes import client

    api = client.CustomObjectsApi(subject.cluster.api)
    found = _exists(
        lambda: api.get_cluster_custom_object(*_QUEUES, name, _request_timeout=_TIMEOUT_S), "Volcano queue", name
    )
    state = found.get("status", {}).get("state", "")
    if state not in ("", "Open"):
        raise ConfigError(
            f"train.kubernetes.queue: {name!r} is {state}: jobs wait in it for ever; take another, or open it"
        )
    return name


@check("image", "train")
def image(subject: Subject) -> str:
    """The image is named so that every node runs the same one."""
    if subject.config.train.scheduler != "kubernetes":
        raise Skip(f"train.scheduler is {subject.config.train.scheduler}")
    name = subject.config.train.kubernetes.image
    last = name.rpartition("/")[2]
    if "@sha256:" not in name and (":" not in last or last.endswith(":latest")):
        raise Warn(
            f"train.kubernetes.image {name!r} has no fixed tag: nodes may run different ones; name a tag or digest"
        )
    return name


@check("secrets", "train")
def secrets(subject: Subject) -> str:
    """Secrets, claims and the service account that the job names exist."""
    settings = _settings(subject)
    from kubernetes import client

    api = client.CoreV1Api(subject.cluster.api)
    wanted = [("secret", api.read_namespaced_secret, name) for name in settings.secrets]
    wanted += [
        ("volume claim", api.read_namespaced_persistent_volume_claim, item.partition(":")[0])
        for item in settings.volume_claims
    ]
    if settings.service_account:
        wanted.append(("service account", api.read_namespaced_service_account, settings.service_account))
    for kind, read, name in wanted:
        _exists(partial(read, name, settings.namespace, _request_timeout=_TIMEOUT_S), kind, name)
    return ", ".join(name for _, _, name in wanted) or "none are named"


def _settings(subject: Subject) -> KubernetesConfig:
    if subject.cluster is None:
        scheduler = subject.config.train.scheduler
        raise Skip("no cluster answers" if scheduler == "kubernetes" else f"train.scheduler is {scheduler}")
    return subject.config.train.kubernetes


def _exists(read: Callable[[], Any], kind: str, name: str) -> Any:
    """What is read. Raises ConfigError where it is not there, and Warn where we may not know."""
    from kubernetes import client

    try:
        return read()
    except client.ApiException as error:
        if error.status == 404:
            hint = "; install Volcano, or create it" if kind == "Volcano queue" else "; create it, or correct the name"
            raise ConfigError(f"the cluster has no {kind} {name!r}{hint}") from None
        if error.status == 403:
            raise Warn(f"this user may not read the {kind} {name!r}: whether it exists is not known") from None
        raise ConfigError(f"{kind} {name!r}: the cluster answers {error.status} {error.reason}") from None
