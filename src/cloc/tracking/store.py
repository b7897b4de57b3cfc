"""The store that runs and registered models lie in: its address, a client of it, and how it is refused."""

import os
from typing import Any

from cloc.config.schema import TrackingConfig
from cloc.errors import ConfigError

DEFAULT_STORE = "sqlite:///mlflow.db"
STORE_VARIABLE = "MLFLOW_TRACKING_URI"


def tracking_uri(config: TrackingConfig) -> str:
    """Store or server: the settings', else MLFLOW_TRACKING_URI, else SQLite in the working directory."""
    return config.uri or os.environ.get(STORE_VARIABLE) or DEFAULT_STORE


def open_store(config: TrackingConfig) -> tuple[Any, str, str]:
    """A client, its URI and the experiment's id."""
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(config)
    try:
        client = connect(uri)
        experiment = client.get_experiment_by_name(config.experiment)
        return client, uri, experiment.experiment_id if experiment else client.create_experiment(config.experiment)
    except (MlflowException, OSError) as error:
        reason = str(error).splitlines()[0][:300]
        raise ConfigError(
            f"MLflow at {uri} cannot be used ({reason}); set tracking.uri or MLFLOW_TRACKING_URI"
        ) from None


def connect(uri: str) -> Any:
    """An MLflow client of a store; imports mlflow, and asks nothing of the store yet."""
    import logging

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)
