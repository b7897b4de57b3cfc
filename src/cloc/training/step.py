"""One optimiser step: losses and gradients of a batch, clipping, and the update, or none."""

import torch
from torch import Tensor, nn

from cloc.config.schema import TrainConfig
from cloc.data.batches import Batch
from cloc.model import factory
from cloc.model.optimizers import Optimizers
from cloc.training.distributed import Rank
from cloc.training.task import CLOCTask, Losses


class Stepper:
    """Makes steps.

    Args:
        module: what `parallel` made of the task.
        task: model and losses.
        optimizers: of the task's parameters.
        train: section `train`.
        rank: this process.
    """

    def __init__(
        self, module: nn.Module, task: CLOCTask, optimizers: Optimizers, *, train: TrainConfig, rank: Rank
    ) -> None:
        self._module, self._task, self._optimizers = module, task, optimizers
        self._train, self._rank = train, rank

    def backward(self, batch: Batch) -> Losses:
        """Losses of the global batch; leaves the gradients in the parameters. The batch is on the device."""
        with factory.autocast(self._train.precision, self._rank.device):
            losses: Losses = self._module(batch)
        losses.total.backward()
        return losses

    def clip(self) -> Tensor:
        """Scales the gradients to the largest norm that is allowed; returns the norm before, equal on all ranks."""
        return torch.nn.utils.clip_grad_norm_(self._task.parameters(), self._train.grad_clip)

    def apply(self, rate: float) -> None:
        """An update at that learning rate; no gradients are left."""
        self._optimizers.step(rate)
        self._task.clamp_scales()

    def discard(self) -> None:
        """No update; no gradients are left."""
        for parameter in self._task.parameters():
            parameter.grad = None
