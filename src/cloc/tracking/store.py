"""The store that runs and registered models lie in: its address, a client of it, and how it is refused."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cloc.config.schema import TrackingConfig
from cloc.errors import ConfigError

DEFAULT_STORE = "sqlite:///mlflow.db"
_SQLITE = "sqlite:///"
STORE_VARIABLE = "MLFLOW_TRACKING_URI"


def tracking_uri(config: TrackingConfig) -> str:
    """Store or server: the settings', else MLFLOW_TRACKING_URI, else SQLite in the working directory."""
    return config.uri or os.environ.get(STORE_VARIABLE) or DEFAULT_STORE


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
    """A client, its URI and the experiment's id."""
    uri = tracking_uri(config)
    with asked(uri, "cannot be used", hint="set tracking.uri or MLFLOW_TRACKING_URI"):
        client = connect(uri)
        experiment = client.get_experiment_by_name(config.experiment)
        return client, uri, experiment.experiment_id if experiment else client.create_experiment(config.experiment)


def connect(uri: str) -> Any:
    """An MLflow client of a store; imports mlflow, and asks nothing of the store yet."""
    import logging

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


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
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise ConfigError(f"MLflow at {uri} {what} ({reason})" + (f"; {hint}" if hint else "")) from None


@contextmanager
def exported(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for this process and those that it starts meanwhile."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
