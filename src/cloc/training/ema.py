"""A moving average of the weights (extension)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Average:
    """The moving average of a module's trained parameters; what is frozen is no part of it.

    Of parameters that FSDP2 divides among the ranks, each rank averages its part.

    Args:
        module: whose parameters, as they are optimised: after `parallel`.
        decay: of the average, a step. It begins lower, at (1 + n) / (10 + n) after n steps, so that the random weights
            of the start are forgotten (TensorFlow's and timm's warm-up).
    """

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self._decay = decay
        self._own = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        self._average = {name: parameter.detach().clone() for name, parameter in self._own.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the weights after step `step`, counted from 0, in."""
        done = step + 1
        decay = min(self._decay, (1 + done) / (10 + done))
        torch._foreach_lerp_(_local(self._average.values()), _local(self._own.values()), 1 - decay)

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


def _local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's parts of divided tensors, and the others whole; the memory is theirs."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach() for tensor in tensors]
