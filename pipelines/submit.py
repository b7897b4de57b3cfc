"""Starts a run of the pipeline on a Kubeflow server."""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import kfp
import kfp_server_api
import urllib3
from google.auth.exceptions import GoogleAuthError

from cloc.config import Config
from cloc.errors import ClocError, ConfigError
from cloc.pipeline.parameters import arguments
from pipelines.cloc_pipeline import NAME
from pipelines.compile import compile_pipeline

_POLL_SECONDS = 10.0
_ENDED = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}
_PATIENCE = 5  # failed looks at a run in a row, before giving up


class SubmitError(ClocError):
    """The server is not there, or refuses."""


def submit(
    config: Config,
    *,
    host: str | None,
    namespace: str | None,
    experiment: str,
    data: str | None,
    wait: bool,
    image: str = "",
) -> str:
    """Compiles the pipeline, starts a run with these settings, and waits for its end when asked to.

    Args:
        config: all settings.
        host: URL of the KFP API; else KFP_ENDPOINT.
        namespace: namespace of a multi-user deployment.
        experiment: experiment of the run.
        data: collection, as the tasks see it.
        wait: whether to wait for the end.
        image: image of the tasks; else CLOC_IMAGE, else the components' own.

    Returns:
        The run's id.

    Raises:
        ConfigError: no host is given.
        SubmitError: the server cannot be reached or refuses; or, when waiting, the run did not succeed.
    """
    where = host or os.environ.get("KFP_ENDPOINT")
    if not where:
        raise ConfigError("no Kubeflow server is named; give --host or set KFP_ENDPOINT (the URL of its API)")
    name = f"{NAME} {time.strftime('%Y-%m-%d %H:%M:%S')}"
    print(f"asking {where}", flush=True)
    try:
        client = kfp.Client(host=where, namespace=namespace or "kubeflow")
        with tempfile.TemporaryDirectory() as folder:
            package = Path(folder) / f"{NAME}.yaml"
            compile_pipeline(package, image=image or os.environ.get("CLOC_IMAGE", ""))
            made = client.create_run_from_pipeline_package(
                str(package),
                arguments={"data": data or "", **arguments(config)},
                run_name=name,
                experiment_name=experiment,
                namespace=namespace,
            )
    except Exception as error:
        raise _explain(error, where) from None
    if not made.run_id:
        raise SubmitError(
            f"{where} does not answer as a Kubeflow server: it started no run (a login page, or a proxy?)"
        )
    print(f"started run {name!r} ({made.run_id}) on {where}", flush=True)
    if wait:
        _wait(client, made.run_id, where=where)
    return str(made.run_id)


def _explain(error: Exception, where: str) -> Exception:
    """A failure of the server or of the way there as one line; anything else stays what it is."""
    if isinstance(error, kfp_server_api.ApiException):
        body = " ".join(str(error.body or "").split())[:300]
        return SubmitError(f"the Kubeflow server {where} refused: {error.status} {error.reason} {body}".rstrip())
    if isinstance(error, (urllib3.exceptions.HTTPError, OSError, GoogleAuthError)):
        return SubmitError(
            f"there is no Kubeflow server at {where} ({type(error).__name__}); is the port-forward running?"
        )
    # kfp's own client raises bare exceptions for an address that answers something else.
    if type(error) in (RuntimeError, ValueError, TypeError):
        return SubmitError(f"{where} does not answer as a Kubeflow server: {' '.join(str(error).split())[:300]}")
    return error


def _wait(client: Any, run: str, *, where: str) -> None:
    """Follows a run to its end. Raises SubmitError unless it succeeds."""
    started, shown, misses = time.monotonic(), "", 0
    while True:
        try:
            found = client.get_run(run)
            misses = 0
        except Exception as error:
            misses += 1
            if misses >= _PATIENCE:
                raise _explain(error, where) from None
            time.sleep(_POLL_SECONDS)
            continue
        state = str(found.state or "PENDING")
        if state != shown:
            print(f"run {run}: {state} after {time.monotonic() - started:.0f} s", flush=True)
            shown = state
        if state in _ENDED:
            break
        time.sleep(_POLL_SECONDS)
    if state != "SUCCEEDED":
        reason = found.error.message if found.error else "see its tasks in the user interface"
        raise SubmitError(f"run {run} on {where} ended as {state}: {reason}")
