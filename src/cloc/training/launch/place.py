"""Where a job reads and writes, as the machines of its scheduler see it."""

from contextlib import AbstractContextManager
from pathlib import Path

from cloc.config.schema import TrainConfig
from cloc.errors import ConfigError
from cloc.tracking.store import exported


def reachable(path: str, train: TrainConfig) -> str:
    """A path as the machines of the scheduler see it: their working directory is another one.

    Raises:
        ConfigError: pods cannot find it.
    """
    if "://" in path or Path(path).is_absolute() or train.scheduler == "local_cwd":
        return path
    if train.scheduler == "kubernetes":
        raise ConfigError(
            f"{path!r} is a relative path, which pods cannot find: give an s3:// prefix, or a folder of a volume of "
            "train.kubernetes.volume_claims"
        )
    return str(Path(path).absolute())


def home(run: str, train: TrainConfig, output: str | Path) -> str:
    """Folder or s3:// prefix of a run's output: a folder of `train.storage` that is named after it, or the output."""
    return f"{reachable(train.storage, train).rstrip('/')}/{run}" if train.storage else str(output)


def impatient() -> AbstractContextManager[None]:
    """Has an S3 endpoint that does not answer asked once only."""
    return exported({"CLOC_S3_PATIENCE": "0"})
