"""Muon: momentum whose update is orthogonalised, for the weights of linear layers.

`torch.optim.Muon` does the same in bfloat16, whatever the device. A processor without instructions for it computes that
some thirty times as slowly as float32 (docs/performance.md), so here processors take float32 and everything else takes
bfloat16. Shapes: a weight is (O, I); M is the smaller of both, N the larger.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Of a polynomial whose slope at zero is as large as it can be (Jordan et al., kellerjordan.github.io/posts/muon).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_EPS = 1e-7
# The root mean square of AdamW's updates (Liu et al., arXiv 2502.16982, section 2.2).
_ADAMW_RMS = 0.2


def orthogonalized(update_OI: Tensor) -> Tensor:
    """A matrix with the same singular vectors, and singular values of about 1 (0.5 to 1.5) where they are not zero.

    Args:
        update_OI: a matrix (O, I).

    Returns:
        (O, I), float32 on a processor and bfloat16 elsewhere.
    """
    a, b, c = _COEFFICIENTS
    x = update_OI.to(torch.float32 if update_OI.device.type == "cpu" else torch.bfloat16)
    tall = x.shape[0] > x.shape[1]
    x_MN = x.T if tall else x
    x_MN = x_MN / x_MN.norm().clamp(min=_EPS)  # no singular value is above 1
    for _ in range(_ITERATIONS):
        gram_MM = x_MN @ x_MN.T
        x_MN = torch.addmm(x_MN, torch.addmm(gram_MM, gram_MM, gram_MM, beta=b, alpha=c), x_MN, beta=a)
    return x_MN.T if tall else x_MN


class Muon(torch.optim.Optimizer):
    """Nesterov's momentum, orthogonalised, and weight decay; a step is as large as AdamW's at the same rate.

    Args:
        params: matrices, or groups of them.
        lr: learning rate.
        weight_decay: decoupled, as AdamW's.
        momentum: of the moving average of gradients.

    Raises:
        ValueError: a parameter is no matrix.
    """

    def __init__(self, params: Any, lr: float = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        shapes = [tuple(weight.shape) for group in self.param_groups for weight in group["params"]]
        if other := [shape for shape in shapes if len(shape) != 2]:
            raise ValueError(f"Muon is for matrices, and a parameter has the shape {other[0]}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Updates what has a gradient; returns what `closure`, which computes the loss anew, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for weight_OI in group["params"]:
                if weight_OI.grad is None:
                    continue
                state = self.state[weight_OI]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight_OI.grad)
                average_OI = state["momentum_buffer"].lerp_(weight_OI.grad, 1 - momentum)
                update_OI = orthogonalized(weight_OI.grad.lerp(average_OI, momentum))
                weight_OI.mul_(1 - rate * group["weight_decay"])
                weight_OI.add_(update_OI, alpha=-rate * _ADAMW_RMS * math.sqrt(max(weight_OI.shape)))
        return loss
