"""One optimiser step: losses and gradients of a batch, clipping, and the update, or none."""

from functools import partial

from torch import Tensor, nn

from cloc.config.schema import TrainConfig
from cloc.data.batches import Batch
from cloc.model import factory
from cloc.model.optimizers import Optimizers
from cloc.training import cached
from cloc.training.distributed import Rank
from cloc.training.parallel import clip_gradients, share_scalars
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
        autocast = partial(factory.autocast, self._train.precision, self._rank.device)
        size = self._train.micro_batch
        if 0 < size < len(batch.keys):
            losses = cached.backward(self._module, self._task, batch, size=size, autocast=autocast)
        else:
            with autocast():
                losses = self._module(batch)
            losses.total.backward()
        share_scalars(self._module, self._task)
        return losses

    def clip(self) -> Tensor:
        """Scales the gradients to the largest norm that is allowed; returns the norm before, equal on all ranks."""
        return clip_gradients(self._task, largest=self._train.grad_clip)

    def apply(self, rate: float) -> None:
        """An update at that learning rate; no gradients are left."""
        self._optimizers.step(rate)
        self._task.clamp_scales()

    def discard(self) -> None:
        """No update; no gradients are left."""
        for parameter in self._task.parameters():
            parameter.grad = None
