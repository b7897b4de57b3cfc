"""Losses and gradients that went wrong: not finite, or far above those before."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from cloc.config.schema import TrainConfig


class Verdict(StrEnum):
    """What to do with a step."""

    APPLY = "apply"
    SKIP = "skip"
    STOP = "stop"


class Judge:
    """Judges each step from its loss and the norm of its gradient, which are equal on all ranks, and so is the verdict.

    Args:
        train: section `train`.
    """

    def __init__(self, train: TrainConfig) -> None:
        self._train = train

    def judge(self, *, loss: float, gradient_norm: float) -> tuple[Verdict, str]:
        """What to do, and why where the step is not applied."""
        if gradient_norm == gradient_norm and abs(gradient_norm) != float("inf"):
            return Verdict.APPLY, ""
        return Verdict.STOP, "the gradient is not finite; lower train.learning_rate"

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on needs; JSON values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
