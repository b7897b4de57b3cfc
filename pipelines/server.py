"""The way to a Kubeflow server: where it is, who asks, and in one line what is wrong.

`connect` finds the server, lets it say what it is, and gives a `Server`, whose `client` is KFP's own.
"""

import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kfp
import kfp_server_api
import urllib3
from google.auth.exceptions import GoogleAuthError
from kfp import client as kfp_client

from cloc.errors import ClocError, ConfigError

IN_CLUSTER = "http://ml-pipeline.kubeflow:8888"
# Files with a token that is read anew for each request: KFP's own name, and a shorter one.
TOKEN_FILES = ("KF_PIPELINES_SA_TOKEN_PATH", "KF_PIPELINES_TOKEN_PATH")
COOKIE = "KFP_COOKIE"
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_TIMEOUT = (4.0, 60.0)  # seconds to connect, and to wait for an answer
_LOGIN = f"give --token, or a browser's session cookie in {COOKIE}"


class ServerError(ClocError):
    """The server is not there, refuses, or is no Kubeflow server.

    Attributes:
        status: HTTP status of a refusal; 0 for anything else.
    """

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Server:
    """A Kubeflow server that answered.

    Attributes:
        where: URL of its API.
        client: KFP's client.
        namespace: the user's, for requests; None on a server that is not divided among users.
        pods: namespace in which pods run, as far as known.
    """

    def __init__(self, client: kfp.Client, *, where: str, namespace: str | None, multi_user: bool) -> None:
        self.where, self.client = where, client
        self.namespace = namespace if multi_user else None
        self.pods = namespace or "kubeflow"
        self._api = _api(client)

    def ask(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Calls a method of one of the client's generated APIs, such as `client.runs.run_service_get_run`.

        Raises:
            ServerError: the server is gone, refuses, or answers something else.
        """
        try:
            answer = method(*arguments, _request_timeout=_TIMEOUT, **options)
        except Exception as error:
            raise explain(error, self.where) from None
        _refuse_page(self._api.last_response, self.where)
        return answer

    def pages(self, method: Callable[..., Any], field: str, *arguments: Any, **options: Any) -> Iterator[Any]:
        """Items of a list, page by page as they are wanted."""
        token = ""
        while True:
            page = self.ask(method, *arguments, page_token=token, **options)
            yield from getattr(page, field) or ()
            token = page.next_page_token
            if not token:
                return

    def text(self, path: str, query: list[tuple[str, str]]) -> str:
        """Content of an address that is in no generated API.

        Raises:
            ServerError: there is no such text.
        """
        try:
            return _get(self._api, path, query)
        except Exception as error:
            raise explain(error, self.where) from None

    def url(self, page: str) -> str:
        """Address of a page of the user interface, such as `runs/details/ID`."""
        base = os.environ.get(kfp_client.client.KF_PIPELINES_UI_ENDPOINT_ENV) or self.where
        return f"{base.rstrip('/')}/#/{page}"


def connect(*, host: str | None, namespace: str | None, token: str | None) -> Server:
    """Finds the server and asks what it is.

    Args:
        host: URL of the API; else KFP_ENDPOINT, else KFP's KF_PIPELINES_ENDPOINT, else the cluster that this runs in.
        namespace: the user's on a server for several; else KFP_NAMESPACE, else that of the pod that this runs in.
        token: bearer token; else that of a file (KF_PIPELINES_SA_TOKEN_PATH, or where a cluster mounts it).

    Raises:
        ConfigError: no server is named, or no namespace where one is needed.
        ServerError: it is not there, refuses, or is another one.
    """
    where = host or os.environ.get("KFP_ENDPOINT") or os.environ.get(kfp_client.client.KF_PIPELINES_ENDPOINT_ENV)
    if not where and os.environ.get("KUBERNETES_SERVICE_HOST"):
        where = IN_CLUSTER
    if not where:
        raise ConfigError("no Kubeflow server is named; give --host or set KFP_ENDPOINT (the URL of its API)")
    parts = urlsplit(where)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(f"{where!r} is no address of a Kubeflow server; write it as http://localhost:8888")
    where = where.rstrip("/")
    given = namespace or os.environ.get("KFP_NAMESPACE")
    if not given and _OWN_NAMESPACE.is_file():
        given = _OWN_NAMESPACE.read_text().strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # "works with servers of v2 only": asked for below
            client = kfp.Client(
                host=where,
                namespace="-",  # else it asks the server for one, five times; every request names its own
                cookies=os.environ.get(COOKIE),
                ssl_ca_cert=os.environ.get("SSL_CERT_FILE"),
                **_credentials(token),
            )
    except Exception as error:
        raise explain(error, where) from None
    multi_user = _greet(client, where)
    if multi_user and not given:
        raise ConfigError(f"{where} serves several users, each in a namespace of their own; give --namespace")
    return Server(client, where=where, namespace=given, multi_user=multi_user)


def display_name_filter(operation: str, value: str) -> str:
    """A list's filter on the name that people see; the operation is EQUALS or IS_SUBSTRING."""
    predicate = kfp_server_api.V2beta1Predicate(operation=operation, key="display_name", string_value=value)
    wanted = kfp_server_api.V2beta1Filter(predicates=[predicate])
    return json.dumps(kfp_server_api.ApiClient().sanitize_for_serialization(wanted))


def explain(error: Exception, where: str) -> Exception:
    """A failure of the server or of the way there as one line; anything else stays what it is."""
    if isinstance(error, kfp_server_api.ApiException):
        status, said = error.status or 0, _words(error)
        if not status:
            return _no_tls(where, said)
        told = f"{status} {error.reason or ''}".rstrip() + (f": {said}" if said else "")
        if status in (401, 403):
            return ServerError(f"the Kubeflow server {where} does not let you in ({told}); {_LOGIN}", status=status)
        return ServerError(f"the Kubeflow server {where} refused: {told}", status=status)
    reason = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) else None
    if isinstance(reason, urllib3.exceptions.SSLError):
        return _no_tls(where, _line(str(reason)))
    if isinstance(error, OSError) and error.filename:
        return ConfigError(f"{error.filename} cannot be read ({error.strerror}): it is to say who asks {where}")
    if isinstance(error, (urllib3.exceptions.HTTPError, OSError, GoogleAuthError)):
        return ServerError(
            f"there is no Kubeflow server at {where} ({type(error).__name__}); is the port-forward running?"
        )
    # The generated client raises bare exceptions for an answer that is no JSON of its own.
    if type(error) in (RuntimeError, ValueError, TypeError, AttributeError, UnicodeDecodeError):
        return ServerError(f"{where} does not answer as a Kubeflow server: {_line(str(error))}")
    return error


def _no_tls(where: str, reason: str) -> ServerError:
    return ServerError(
        f"no safe connection to {where} ({reason}); is it http, or has the cluster an authority of its own, to be "
        f"named by SSL_CERT_FILE?"
    )


def _credentials(token: str | None) -> dict[str, Any]:
    """What kfp.Client is given to say who asks."""
    if token:
        return {"existing_token": token}
    named = next((name for name in TOKEN_FILES if os.environ.get(name)), None)
    path = Path(os.environ[named] if named else kfp_client.KF_PIPELINES_SA_TOKEN_PATH)
    if not path.is_file():
        if named:
            raise ConfigError(f"there is no token at {path}; correct {named}, or unset it")
        return {}
    return {"credentials": kfp_client.ServiceAccountTokenVolumeCredentials(path=str(path))}


def _api(client: kfp.Client) -> kfp_server_api.ApiClient:
    """What the client's generated APIs ask through."""
    return client.runs.run_service_get_run.__self__.api_client


def _get(api: kfp_server_api.ApiClient, path: str, query: list[tuple[str, str]] | None = None) -> str:
    headers = {"Accept": "application/json, text/plain"}
    options = {"auth_settings": ["Bearer"], "_request_timeout": _TIMEOUT}
    api.call_api(path, "GET", query_params=query, header_params=headers, **options)
    _refuse_page(api.last_response, str(api.configuration.host))
    return str(api.last_response.data)


def _greet(client: kfp.Client, where: str) -> bool:
    """Whether the server is for several users. Raises ServerError unless it speaks this client's API."""
    api = _api(client)
    try:
        told = json.loads(_get(api, "/apis/v2beta1/healthz"))
    except kfp_server_api.ApiException as error:
        if error.status == 404 and (release := _older_release(api)):
            raise ServerError(
                f"the server {where} is of Kubeflow Pipelines {release}, without the API v2beta1; 2.0 or newer is "
                f"needed"
            ) from None
        raise explain(error, where) from None
    except Exception as error:
        raise explain(error, where) from None
    if not isinstance(told, dict):
        raise ServerError(f"{where} does not answer as a Kubeflow server: {_line(json.dumps(told))}")
    return bool(told.get("multi_user"))


def _older_release(api: kfp_server_api.ApiClient) -> str:
    """Release of a server that speaks the API of 1.x only; empty for none."""
    try:
        told = json.loads(_get(api, "/apis/v1beta1/healthz"))
    except Exception:  # whatever it is, it is no older server
        return ""
    return str(told.get("tag_name") or "1.x") if isinstance(told, dict) else ""


def _refuse_page(response: Any, where: str) -> None:
    if "html" in (response.getheader("content-type") or ""):
        raise ServerError(
            f"{where} answers with a web page, not as a Kubeflow server: is it a login ({_LOGIN}), or does the "
            f"address lack /pipeline?"
        )


def _words(error: kfp_server_api.ApiException) -> str:
    """What a refusal says: the message of KFP's JSON, or the text as it is."""
    body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else str(error.body or "")
    if not error.status:
        return _line(str(error.reason))
    try:
        told = json.loads(body)
    except ValueError:
        return "" if "<" in body[:100] else _line(body)  # a page says nothing to a reader of one line
    if not isinstance(told, dict):
        return _line(body)
    return _line(str(told.get("message") or told.get("error") or told.get("error_message") or ""))


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
