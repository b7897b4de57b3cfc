"""Failures whose message alone tells the user what to do.

The command line and the pipeline components print a `ClocError` as one line without a traceback and exit with
its `exit_code`; every other exception is a defect of the program and keeps its traceback.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloc.stage import StageResult


class ClocError(Exception):
    """A failure the user can act on; the message names the bad value, where it came from and the fix."""

    exit_code = 1


class ConfigError(ClocError, ValueError):
    """A setting is missing, unknown or of the wrong type or range."""

    exit_code = 2


class DataError(ClocError, ValueError):
    """A data set breaks the data contract, or too large a share of it had to be quarantined."""

    exit_code = 3


class GateFailed(ClocError):  # noqa: N818 (a verdict, not a fault)
    """A quality gate (validation, evaluation) stopped the pipeline; the message is the reason.

    Attributes:
        result: what the stage found, for the record, where it got so far.
    """

    exit_code = 4

    def __init__(self, message: str, *, result: "StageResult | None" = None) -> None:
        super().__init__(message)
        self.result = result


class TrainingError(ClocError):
    """A training job could not start, failed on some rank, or cannot resume."""

    exit_code = 5
