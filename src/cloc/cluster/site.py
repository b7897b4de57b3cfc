"""A cluster that answers: what is expected in it, and reading from it with one line for what is not there."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from cloc.config.schema import KubernetesConfig, TrainConfig
from cloc.errors import ConfigError
from cloc.training.doctor.kubernetes import connect as ask_version
from cloc.training.doctor.registry import Skip, Subject, Warn

TIMEOUT_S = 10
SERVICES = "cloc"
"""Namespace of MLflow and what it needs."""
KUBEFLOW = "kubeflow"
"""Namespace of the Kubeflow Pipelines server."""
APPLY = "kubectl apply -k infra/k8s/overlays/OVERLAY makes it"
# Names of a training that infra/k8s makes, as infra/README.md has them set.
_MADE = {
    "namespace": "cloc-training",
    "queue": "cloc-training",
    "priority_class": "cloc-training",
    "service_account": "cloc-trainer",
    "secrets": ("cloc-training",),
}


class MissingError(ConfigError):
    """The API server knows no such thing."""


@dataclass
class Site:
    """A cluster that answered, and what is known of it by now.

    Attributes:
        api: client of `kubernetes`.
        training: names of a training and what its pods ask for.
        settings: the overlay's settings.env, as the cluster has it; None where they are not there.
        config_map: what the pipeline's tasks are told; likewise.
        s3_keys: their key of S3, and its secret; likewise.
        absent: namespaces that are not there.
    """

    api: Any
    training: KubernetesConfig
    settings: dict[str, str] | None = None
    config_map: dict[str, str] | None = None
    s3_keys: tuple[str, str] | None = field(default=None, repr=False)
    absent: set[str] = field(default_factory=set)

    def setting(self, name: str) -> str:
        """A setting of the overlay. Raises Skip where it is not known."""
        if not (self.settings and self.settings.get(name)):
            raise Skip(f"the config map {SERVICES}/settings does not say what {name} is")
        return self.settings[name]

    @property
    def tasks(self) -> str:
        """Namespace of the pipeline's tasks. Raises Skip where it is not known."""
        return self.setting("tasks-namespace")

    def need(self, *namespaces: str) -> None:
        """Raises Skip where a namespace is not there, of which the check of them tells."""
        if gone := sorted(self.absent & set(namespaces)):
            raise Skip(f"there is no namespace {', '.join(gone)}")


def connect(subject: Subject) -> str:
    """The API server answers."""
    train = subject.config.train
    found = ask_version(train.model_copy(update={"scheduler": "kubernetes"}))
    subject.cluster = Site(found.api, _training(train))
    return f"{found.server}, {found.version}"


def _training(train: TrainConfig) -> KubernetesConfig:
    return train.kubernetes if train.scheduler == "kubernetes" else train.kubernetes.model_copy(update=_MADE)


def reached(subject: Subject) -> Site:
    """The cluster. Raises Skip where none answers, of which the check of it tells."""
    if subject.cluster is None:
        raise Skip("no cluster answers")
    site: Site = subject.cluster
    return site


def checked_url(text: str, *, where: str) -> str:
    """A server's URL without a slash at its end. Raises ConfigError for what is none, or holds a login."""
    parts = urlsplit(text)
    if parts.username or parts.password:
        raise ConfigError(f"{where} holds a user or password for all to read: keep it in a secret")
    try:
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good:
        raise ConfigError(f"{where}: {text!r} is no URL as in http://host:port")
    return text.rstrip("/")


def in_pod() -> bool:
    """Whether this runs within the cluster, where its services have names."""
    return "KUBERNETES_SERVICE_HOST" in os.environ


def read(what: str, method: Callable[..., Any], *arguments: Any, fix: str = APPLY) -> Any:
    """What the API server answers.

    Args:
        what: is read, in words.
        method: of an API of `kubernetes`, with its arguments.
        fix: what to do where it is not there.

    Raises:
        MissingError: it is not there.
        ConfigError: the server fails.
        Warn: this user may not know.
    """
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        return method(*arguments, _request_timeout=TIMEOUT_S)
    except ApiException as error:
        if error.status == 404:
            raise MissingError(f"there is no {what}: {fix}") from None
        if error.status in (401, 403):
            raise Warn(f"this user may not read the {what}: whether it is right is not known") from None
        raise ConfigError(f"{what}: the cluster answers {error.status} {error.reason}") from None
    except (HTTPError, ValueError) as error:
        raise ConfigError(f"{what}: the cluster does not answer ({' '.join(str(error).split())[:200]})") from None


class Tally:
    """What a check of several things finds: all of it is told in one line, misses before doubts."""

    def __init__(self) -> None:
        self.misses: list[str] = []
        self.doubts: list[str] = []
        self._missing: dict[str, list[str]] = {}  # by what is to be done

    def read(self, what: str, method: Callable[..., Any], *arguments: Any, fix: str = APPLY) -> Any:
        """As `read`; None, and noted, where there is nothing to be had."""
        try:
            return read(what, method, *arguments, fix=fix)
        except MissingError:
            self._missing.setdefault(fix, []).append(what)
        except ConfigError as miss:
            self.misses.append(str(miss))
        except Warn as doubt:
            self.doubts.append(str(doubt))
        return None

    def verdict(self, found: Iterable[str]) -> str:
        """What was found. Raises ConfigError for misses, Warn for doubts alone."""
        missing = [f"there is no {', no '.join(names)}: {fix}" for fix, names in self._missing.items()]
        told = "; ".join([*missing, *self.misses, *self.doubts])
        if missing or self.misses:
            raise ConfigError(told)
        if self.doubts:
            raise Warn(told)
        return ", ".join(found)
