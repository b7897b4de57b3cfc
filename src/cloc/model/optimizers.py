"""AdamW and Muon as one optimiser: Muon for the weights of linear layers, AdamW for the rest.

Muon orthogonalises an update, so that no direction of a weight is left behind: at small budgets it learns much faster.
That is most of what an optimiser's step costs, so ranks share it out: each updates its part of the matrices and sends
them to the others.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from transformers.pytorch_utils import Conv1D  # what GPT-2 calls its linear layers

from cloc.model.muon import Muon

# A linear layer with fewer outputs (the box head's four) is no matrix to orthogonalise.
_THIN = 16


def matrices(model: nn.Module) -> set[int]:
    """The `id`s of a model's weights that are Muon's.

    A head that shares its weights with an embedding looks words up, too, and is none of them.
    """
    shared = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    found = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, (nn.Linear, Conv1D)) and min(module.weight.shape) >= _THIN
    }
    return found - shared


class Optimizers:
    """Both optimisers.

    Args:
        adamw, muon: groups of parameters, {"params", "weight_decay", "rate"}: its rate is a multiple of the one that
            `step` is given. Muon may have none.
        betas: AdamW's.
        group: ranks that hold equal weights and gradients and share Muon's work out; the weights of a step are those
            of one rank to the bit. None: this process does it all. Every rank must make this, and call `step` and
            `prepare`. The matrices' memory is moved: make it after what keeps views of them.
    """

    def __init__(
        self,
        adamw: Sequence[dict[str, Any]],
        muon: Sequence[dict[str, Any]],
        *,
        betas: tuple[float, float],
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self._all: list[torch.optim.Optimizer] = [torch.optim.AdamW(list(adamw), betas=betas, fused=True)]
        if muon:
            self._all.append(_muon(list(muon), group))

    def step(self, rate: float) -> None:
        """A step at that learning rate, then no gradients."""
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def prepare(self) -> None:
        """Makes the state of a run that has not begun, for `tensors` to load into; weights stay as they are."""
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group["lr"] = 0.0
                for parameter in group["params"]:
                    parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def tensors(self, names: Mapping[int, str]) -> dict[str, Tensor]:
        """What a run that goes on needs, as "<parameter>.<name>": the tensors themselves.

        A matrix that Muon has is named on the rank that updates it alone; all else on every rank.

        Args:
            names: name of each parameter, by its `id`.
        """
        return {
            f"{names[id(parameter)]}.{name}": value
            for optimizer in self._all
            for parameter, values in _own(optimizer).state.items()
            for name, value in values.items()
        }


def _muon(groups: list[dict[str, Any]], group: dist.ProcessGroup | None) -> torch.optim.Optimizer:
    if group is None:
        return Muon(groups)
    return ZeroRedundancyOptimizer(
        groups,
        Muon,
        process_group=group,
        parameters_as_bucket_view=True,  # what a rank updates goes to the others in one message
    )


def _own(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimiser that has the state of what this rank updates."""
    return optimizer.optim if isinstance(optimizer, ZeroRedundancyOptimizer) else optimizer
