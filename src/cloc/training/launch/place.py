"""Where a job reads and writes, as the machines of its scheduler see it."""

import shutil
from contextlib import AbstractContextManager, suppress
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


def home(run: str, train: TrainConfig, output: str | Path, *, unfinished: str = "") -> str:
    """Folder or s3:// prefix that a run writes to: named after it in `train.storage`, else in the folder of unfinished
    runs where there is one, else the output.

    Raises:
        ConfigError: that folder is none, or pods cannot find it.
    """
    if "://" in unfinished:
        raise ConfigError(f"--unfinished {unfinished}: give a folder; train.storage takes an s3:// prefix")
    place = train.storage or unfinished
    return f"{reachable(place, train).rstrip('/')}/{run}" if place else str(output)


def finish(run: str, train: TrainConfig, *, unfinished: str) -> None:
    """Takes a finished run away from the folder of unfinished ones; `train.storage` keeps what it has."""
    if unfinished and not train.storage:
        shutil.rmtree(home(run, train, "", unfinished=unfinished))
        with suppress(OSError):  # others lie in it
            Path(unfinished).rmdir()


def impatient() -> AbstractContextManager[None]:
    """Has an S3 endpoint that does not answer asked once only."""
    return exported({"CLOC_S3_PATIENCE": "0"})
