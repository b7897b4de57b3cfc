"""Servers that tasks and ranks talk to: asked directly, or, from outside, through the cluster's API server."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from cloc.cluster.site import KUBEFLOW, SERVICES, TIMEOUT_S, Site, checked_url, in_pod, reached
from cloc.errors import ConfigError, DataError
from cloc.training.doctor.registry import Skip, Subject, Warn

_SERVICE = re.compile(r"(?P<service>[a-z0-9-]+)\.(?P<namespace>[a-z0-9-]+)(?P<domain>\.svc(\.[a-z0-9.-]+)?)?")
_PATIENCE_S = "5"
_LOGIN = (302, 303, 307, 401, 403)  # refused, or sent to a page to log in


@dataclass(frozen=True)
class Service:
    """A service of the cluster, as a URL names it."""

    scheme: str
    namespace: str
    name: str
    port: int

    @property
    def forward(self) -> str:
        """The command that brings it to this machine."""
        return f"kubectl port-forward -n {self.namespace} service/{self.name} {self.port}:{self.port}"


def mlflow(subject: Subject) -> str:
    """MLflow answers where tasks and ranks look for it."""
    site = reached(subject)
    uri = _told(site, "mlflow-tracking-uri")
    status, _, way = _ask(site, "MLflow", uri, "/health")
    if status != 200:
        raise ConfigError(
            f"MLflow at {uri} answers {status} to /health: correct mlflow-tracking-uri, or look at its log"
        )
    return f"{uri}{way}"


def kubeflow(subject: Subject) -> str:
    """The API of Kubeflow Pipelines answers."""
    site = reached(subject)
    named = os.environ.get("KFP_ENDPOINT") or os.environ.get("KF_PIPELINES_ENDPOINT")
    given = named or f"http://ml-pipeline.{KUBEFLOW}:8888"
    url = checked_url(given, where="KFP_ENDPOINT")
    path = "/apis/v2beta1/healthz"
    status, body, way = _ask(site, "Kubeflow Pipelines", url, path)
    if status in _LOGIN:
        raise Warn(
            f"Kubeflow Pipelines at {url} answers {status}, as to anybody without a login: `cloc pipeline` has one"
        )
    try:
        told = json.loads(body) if status == 200 else None
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise ConfigError(f"{url}{path} answers {status}, and not as Kubeflow Pipelines 2 does: correct KFP_ENDPOINT")
    version = told.get("tag_name")
    return f"{url}{f', {version}' if version else ''}{way}"


def s3(subject: Subject) -> str:
    """S3 answers the tasks' keys, and has the bucket."""
    site = reached(subject)
    endpoint = _told(site, "s3-endpoint")
    storage = subject.config.train.storage
    bucket = urlsplit(storage).netloc if storage.startswith("s3://") else site.setting("bucket")
    service = _service(endpoint)
    if service and not in_pod():
        status, _, way = _ask(site, "S3", endpoint, "/")
        if status >= 500:
            raise ConfigError(
                f"S3 at {endpoint} answers {status}: look at the log of {service.namespace}/{service.name}"
            )
        raise Warn(
            f"{endpoint} answers {status}{way}, which cannot sign: for the bucket, {service.forward}, then "
            f"AWS_ENDPOINT_URL={service.scheme}://localhost:{service.port} cloc storage check s3://{bucket}/"
        )
    if site.s3_keys is None:
        raise Skip("the tasks' keys of S3 are not known")
    from cloc.data.s3 import S3Storage

    access, secret = site.s3_keys
    variables = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret}
    region = (site.settings or {}).get("s3-region", "")
    with _environment({**variables, "AWS_REGION": region, "CLOC_S3_PATIENCE": _PATIENCE_S}):
        try:
            next(S3Storage(f"s3://{bucket}").walk("cloc-doctor"), None)
        except DataError as error:
            raise DataError(f"with the keys of secret {site.tasks}/cloc-s3: {error}") from None
    return f"s3://{bucket} at {endpoint}, with the tasks' keys"


def _told(site: Site, key: str) -> str:
    if site.config_map is None:
        raise Skip("the config map cloc is not there")
    return site.config_map[key]


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets variables of this process for a while. AWS_SESSION_TOKEN, of somebody else's keys, is unset meanwhile."""
    before = dict(os.environ)
    os.environ.pop("AWS_SESSION_TOKEN", None)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _service(url: str) -> Service | None:
    """The service that a URL names; None where it is a server outside of the cluster."""
    parts = urlsplit(url)
    found = _SERVICE.fullmatch(parts.hostname or "")
    if found is None or not (found["domain"] or found["namespace"] in (SERVICES, KUBEFLOW)):
        return None
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return Service(parts.scheme, found["namespace"], found["service"], port)


def _ask(site: Site, what: str, url: str, path: str) -> tuple[int, str, str]:
    """Status, body and, in words, the way that was taken.

    Raises:
        ConfigError: nothing answers.
        Warn: it cannot be asked from here.
    """
    service = _service(url)
    if service and not in_pod():
        return *_through(site, what, service, path), " through the API server"
    try:
        pool = urllib3.PoolManager(timeout=urllib3.Timeout(TIMEOUT_S), retries=False)
        answer = pool.request("GET", f"{url}{path}")
    except HTTPError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{what} at {url} cannot be reached ({reason}): start it, or correct its URL") from None
    return answer.status, answer.data.decode(errors="replace"), ""


def _through(site: Site, what: str, service: Service, path: str) -> tuple[int, str]:
    """Status and body of a service, by way of the API server."""
    from kubernetes.client import ApiException

    place, name = service.namespace, service.name
    target = f"/api/v1/namespaces/{place}/services/{service.scheme}:{name}:{service.port}/proxy{path}"
    options: dict[str, Any] = {"auth_settings": ["BearerToken"], "_preload_content": False}
    by_hand = f"ask it by hand: {service.forward}, then curl {service.scheme}://localhost:{service.port}{path}"
    try:
        answer, _, _ = site.api.call_api(target, "GET", _request_timeout=TIMEOUT_S, **options)
        return answer.status, answer.data.decode(errors="replace")
    except ApiException as error:
        body = (error.body or b"").decode(errors="replace") if isinstance(error.body, bytes) else error.body or ""
        if not _is_of_the_api_server(body):  # its own answer, handed on
            return error.status, body
        if error.status == 404:
            raise ConfigError(f"there is no service {place}/{name}: install {what}, or correct its URL") from None
        if "no endpoints" in body:
            raise ConfigError(f"no pod of {place}/{name} is ready: kubectl get pods -n {place}") from None
        if "no service port" in body:
            raise ConfigError(f"{place}/{name} has no port {service.port}: correct the URL of {what}") from None
        if error.status == 403:
            raise Warn(f"this user may not ask {place}/{name} through the API server; {by_hand}") from None
        raise Warn(
            f"the API server does not reach {place}/{name}, as where policies let only tasks in; {by_hand}"
        ) from None
    except HTTPError:
        raise Warn(f"{what} at {place}/{name} does not answer through the API server; {by_hand}") from None


def _is_of_the_api_server(body: str) -> bool:
    try:
        told = json.loads(body)
    except ValueError:
        return False
    return isinstance(told, dict) and told.get("kind") == "Status"
