"""Registered models on this machine: "models:/NAME@ALIAS" or "models:/NAME/VERSION" -> a folder to load."""

import atexit
import functools
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from cloc.config.schema import TrackingConfig
from cloc.errors import ConfigError
from cloc.tracking.packing import MODEL_PATH
from cloc.tracking.store import asked, connect, existing, tracking_uri

_SCHEME = "models:/"
_ADDRESS = re.compile(r"models:/(?P<name>[^/@:]+)(@(?P<alias>[^/@:]+)|/(?P<version>[0-9]+))")


def is_registered(source: str | Path) -> bool:
    """Whether a model's source is an address in the registry."""
    return str(source).startswith(_SCHEME)


def local_model(source: str | Path) -> str:
    """A model's source, for `from_pretrained`: of a registered model a folder here, anything else as it is given.

    The registry is that of MLFLOW_TRACKING_URI, else mlflow.db in the working directory. What must be fetched for this
    lies in a temporary folder until the process ends.

    Raises:
        ConfigError: there is no such registered model, or it cannot be fetched; the message says why.
    """
    if not is_registered(source):
        return str(source)
    uri = existing(tracking_uri(TrackingConfig()))
    client = connect(uri)
    version = version_of(str(source), client, uri=uri)
    with asked(uri, f"does not give the files of {source}, version {version.version}"):
        place = client.get_model_version_download_uri(version.name, version.version)
        return _fetched(f"{place}/{MODEL_PATH}", uri)


def version_of(source: str, client: Any, *, uri: str) -> Any:
    """The model version (MLflow's) that an address means.

    Raises:
        ConfigError: it is no address, or there is no such version.
    """
    parts = _ADDRESS.fullmatch(source)
    if not parts:
        raise ConfigError(f"{source!r} is no registered model: write models:/NAME@ALIAS or models:/NAME/VERSION")
    with asked(uri, f"has no registered model {source}", hint="name another, or set MLFLOW_TRACKING_URI"):
        if parts["alias"]:
            return client.get_model_version_by_alias(parts["name"], parts["alias"])
        return client.get_model_version(parts["name"], parts["version"])


@functools.lru_cache(maxsize=8)
def _fetched(address: str, uri: str) -> str:
    """As `download`, once a process: the files of a version stay as they are."""
    return download(address, uri=uri)


def download(address: str, *, uri: str) -> str:
    """A folder or file of a store's artifacts, here: itself where it lies on this machine."""
    import mlflow

    local = Path(address.removeprefix("file://"))
    if local.exists():
        return str(local)
    scratch = tempfile.mkdtemp(prefix="cloc-model-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    found: str = mlflow.artifacts.download_artifacts(address, dst_path=scratch, tracking_uri=uri, registry_uri=uri)
    return found
