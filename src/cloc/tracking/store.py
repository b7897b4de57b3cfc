"""The store that runs and registered models lie in: its address, a client of it, and how it is refused."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cloc.config.schema import TrackingConfig
from cloc.errors import ConfigError
from cloc.tracking.rows import Point
from cloc.tracking.troubles import HINT, first_line, is_away, reason, shown, unusable

DEFAULT_STORE = "sqlite:///mlflow.db"
_SQLITE, _LOG_BATCH = "sqlite:///", "/api/2.0/mlflow/runs/log-batch"
STORE_VARIABLE, _BY_ID = "MLFLOW_TRACKING_URI", "id:"
ARTIFACTS_VARIABLE = "MLFLOW_DEFAULT_ARTIFACT_ROOT"
"""Folder or s3:// prefix for the artifacts of experiments that are made in a database without a server."""
# Trying again is ours to do, and seen: MLflow's own retries take minutes, and PostgreSQL's have no limit.
_LIMITS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "PGCONNECT_TIMEOUT": "5",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_TIMEOUT, _FIRST_SECONDS = "MLFLOW_HTTP_REQUEST_TIMEOUT", "5"


def tracking_uri(config: TrackingConfig) -> str:
    """Store or server: the settings', else MLFLOW_TRACKING_URI, else SQLite in the working directory."""
    return config.uri or os.environ.get(STORE_VARIABLE) or DEFAULT_STORE


def absolute(uri: str) -> str:
    """An address that means the same from every folder."""
    path = uri.removeprefix(_SQLITE)
    return f"{_SQLITE}{Path(path).absolute()}" if uri.startswith(_SQLITE) and path else uri


def existing(uri: str) -> str:
    """The address of a store that is to be read: a database file is not made where there is none.

    Raises:
        ConfigError: there is no such file.
    """
    path = Path(uri.removeprefix(_SQLITE))
    if uri.startswith(_SQLITE) and not path.is_file():
        raise ConfigError(f"there is no MLflow store {path}; set tracking.uri or MLFLOW_TRACKING_URI")
    return uri


def open_store(config: TrackingConfig) -> tuple[Any, str, str]:
    """A client, its URI and the experiment's id; for what cannot do without the store.

    Raises:
        ConfigError: it cannot be used, or does not answer now.
    """
    uri = tracking_uri(config)
    try:
        client = reachable(uri)
        return client, uri, experiment_id(client, experiment_name(config), uri=uri)
    except Exception as error:
        if is_away(error):
            raise ConfigError(
                f"MLflow at {shown(uri)} does not answer ({reason(error)}), and it is needed here; start it, or {HINT}"
            ) from None
        raise unusable(uri, error) from None


def connect(uri: str) -> Any:
    """An MLflow client of a store; imports mlflow, and asks nothing of the store yet."""
    import logging

    _set_limits()
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # errors are told by who asked
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def reachable(uri: str) -> Any:
    """A client of a store that answers, within seconds.

    Raises:
        Exception: what its libraries raise where it does not (`troubles` tells what that means).
    """
    _set_limits()
    if "://" in uri and not uri.startswith(("http", "sqlite", "databricks")):
        _ask_database(uri)  # MLflow's store asks ten times, for minutes
    with exported({_TIMEOUT: _FIRST_SECONDS} if os.environ[_TIMEOUT] == _LIMITS[_TIMEOUT] else {}):
        client = connect(uri)
        client.search_experiments(max_results=1)
    return client


def _set_limits() -> None:
    for name, value in _LIMITS.items():
        os.environ.setdefault(name, value)


def _ask_database(uri: str) -> None:
    import sqlalchemy
    from sqlalchemy.exc import NoSuchModuleError

    try:
        engine = sqlalchemy.create_engine(uri)
    except NoSuchModuleError:
        raise ValueError(f"unsupported URI {shown(uri)}") from None
    with engine.connect():
        pass
    engine.dispose()


def experiment_name(config: TrackingConfig) -> str:
    """The experiment to use, for `experiment_of`: the settings'; where they have the default, MLFLOW_EXPERIMENT_ID's or
    MLFLOW_EXPERIMENT_NAME's."""
    if config.experiment != TrackingConfig().experiment:
        return config.experiment
    if number := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return f"{_BY_ID}{number}"
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or config.experiment


def experiment_of(client: Any, name: str) -> Any:
    """An experiment by what `experiment_name` gives; None where there is none of that name."""
    if name.startswith(_BY_ID):
        return client.get_experiment(name.removeprefix(_BY_ID))
    return client.get_experiment_by_name(name)


def experiment_id(client: Any, name: str, *, uri: str) -> str:
    """Id of the experiment of that name, which is made where it is missing."""
    from mlflow.exceptions import MlflowException

    found = experiment_of(client, name)
    if found is None:
        root = "" if uri.startswith("http") else os.environ.get(ARTIFACTS_VARIABLE, "")  # a server has its own
        place = f"{root.rstrip('/')}/{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}" if root else None
        try:
            return str(client.create_experiment(name, artifact_location=place))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another process was quicker
            if found is None:
                raise
    return str(found.experiment_id)


def log_points(client: Any, run_id: str, points: Sequence[Point], *, uri: str) -> None:
    """Logs metrics, at most 1,000.

    To a server by its REST API itself: MLflow's client makes several objects of each number, and 300 of them take 15 ms
    of the processor, as JSON one.
    """
    if uri.startswith("http"):
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request_safe

        metrics = [{"key": key, "value": value, "timestamp": at, "step": step} for key, value, at, step in points]
        body = {"run_id": run_id, "metrics": metrics}
        http_request_safe(get_default_host_creds(uri), _LOG_BATCH, "POST", json=body)
    else:
        from mlflow.entities import Metric

        client.log_batch(run_id, metrics=[Metric(*point) for point in points])


@contextmanager
def asked(uri: str, what: str, *, hint: str = "") -> Iterator[None]:
    """Turns what MLflow raises into one line.

    Raises:
        ConfigError: the store does not answer, or refuses; `what` and its reason, then `hint`.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        said = f"MLflow at {shown(uri)} {what} ({first_line(error)})"
        raise ConfigError(said + (f"; {hint}" if hint else "")) from None


@contextmanager
def exported(values: Mapping[str, str | None]) -> Iterator[None]:
    """Environment variables for this process and those that it starts meanwhile; None for one that is not to be set."""
    before = {key: os.environ.get(key) for key in values}
    _export(values)
    try:
        yield
    finally:
        _export(before)


def _export(values: Mapping[str, str | None]) -> None:
    for key, value in values.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value
