"""A moving average of the weights (extension)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The moving average of a module's trained parameters.

    Args:
        module: whose parameters.
        decay: of the average, a step.
    """

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self._decay = decay
        self._own = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        self._average = {name: parameter.detach().clone() for name, parameter in self._own.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes the weights of a step in."""
        current = [parameter.detach() for parameter in self._own.values()]
        torch._foreach_lerp_(list(self._average.values()), current, 1 - self._decay)

    def tensors(self) -> dict[str, Tensor]:
        """The average by parameter, for checkpoints: loading writes into these."""
        return self._average

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The module has the averaged weights within."""
        kept = {name: parameter.detach().clone() for name, parameter in self._own.items()}
        self._put(self._average)
        try:
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._own.items():
            parameter.copy_(values[name])
