"""AdamW and Muon as one optimiser: Muon for the weights of linear layers, AdamW for the rest.

Muon orthogonalises an update, so that no direction of a weight is left behind: at small budgets it learns much faster.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D  # what GPT-2 calls its linear layers

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
    """

    def __init__(
        self, adamw: Sequence[dict[str, Any]], muon: Sequence[dict[str, Any]], *, betas: tuple[float, float]
    ) -> None:
        self._all: list[torch.optim.Optimizer] = [torch.optim.AdamW(list(adamw), betas=betas, foreach=True)]
        if muon:
            # Scaled so that a step is as large as AdamW's, and the learning rate means the same for both.
            self._all.append(torch.optim.Muon(list(muon), adjust_lr_fn="match_rms_adamw"))

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

        Args:
            names: name of each parameter, by its `id`.
        """
        return {
            f"{names[id(parameter)]}.{name}": value
            for optimizer in self._all
            for parameter, values in optimizer.state.items()
            for name, value in values.items()
        }
