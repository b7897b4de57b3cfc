"""The gradients of a large batch from small parts of it (GradCache, Gao et al. 2021, arXiv 2101.06983).

A contrastive loss looks at all embeddings of the batch, and its gradient goes through the model one image at a time:

1. All parts are embedded, and nothing is kept but the embeddings.
2. The losses of the whole batch, and their gradients with respect to embeddings and temperatures.
3. Each part is embedded again, with gradient, and sum(embedding * its gradient) is backpropagated.

Memory is that of one part, besides the embeddings; the cost is one more forward pass. Losses and gradients are those
of the whole batch up to the order of float sums.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor, nn

from cloc.data.batches import Batch
from cloc.training.parallel import gradients_shared
from cloc.training.task import CLOCTask, Embeddings, Losses, Temperatures, as_they_are


@dataclass(frozen=True)
class _Gradients:
    """Of the total loss, by name of embedding or temperature; what is frozen has none."""

    embeddings: dict[str, Tensor]
    temperatures: dict[str, Tensor]


def backward(
    module: nn.Module, task: CLOCTask, batch: Batch, *, size: int, autocast: Callable[[], torch.autocast]
) -> Losses:
    """Losses of the global batch; leaves the gradients in the parameters.

    Args:
        module: what `parallel` made of the task.
        task: model and losses.
        batch: this rank's part; equally large on all ranks.
        size: images that go through the model at once.
        autocast: makes the context of a forward pass. Each has its own: weights that a context has cast without
            gradient would have none later in it.
    """
    chunks = batch.chunks(size)
    with torch.no_grad():
        parts = list[Embeddings]()
        for chunk in chunks:
            with autocast():
                parts.append(module(chunk, as_they_are))
    losses, gradients = _gradients(task, batch, parts, autocast=autocast)
    del parts
    for number, chunk in enumerate(chunks):
        last, first = number == len(chunks) - 1, number * size
        own = {name: value[first : first + size] for name, value in gradients.embeddings.items()}
        given = replace(gradients, embeddings=own)
        # What shares gradients among ranks waits for all of them in the last part, those of the temperatures too.
        with gradients_shared(module, last):
            with autocast():
                surrogate = module(chunk, partial(_surrogate, given=given, task=task if last else None))
            surrogate.backward()
    return losses


def _gradients(
    task: CLOCTask, batch: Batch, parts: Sequence[Embeddings], *, autocast: Callable[[], torch.autocast]
) -> tuple[Losses, _Gradients]:
    """Losses of the whole batch, and their gradients."""
    whole = {
        field.name: torch.cat([value for part in parts if (value := getattr(part, field.name)) is not None])
        for field in fields(Embeddings)
        if getattr(parts[0], field.name) is not None
    }
    for name, value in whole.items():
        value.requires_grad_(name not in task.fixed)
    temperatures = {
        name: value.detach().clone().requires_grad_()
        for name, value in vars(task.temperatures()).items()
        if value is not None
    }
    with autocast():
        absent = {field.name: None for field in fields(Temperatures)}
        losses = task.losses(Embeddings(**whole), batch, Temperatures(**{**absent, **temperatures}))
    losses.total.backward()
    return replace(losses, total=losses.total.detach()), _Gradients(_taken(whole), _taken(temperatures))


def _taken(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def _surrogate(embeddings: Embeddings, *, given: _Gradients, task: CLOCTask | None) -> Tensor:
    """A scalar with the gradients that are given: those of the embeddings and, with a task, of its temperatures."""
    terms = [(getattr(embeddings, name) * gradient).sum() for name, gradient in given.embeddings.items()]
    if task is not None:
        temperatures = task.temperatures()
        terms += [getattr(temperatures, name) * gradient for name, gradient in given.temperatures.items()]
    return torch.stack(terms).sum()
