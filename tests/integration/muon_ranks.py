"""What `test_muon_ranks.py` runs on several ranks: the same gradients by optimisers that share Muon's work out, and by
ones that do it all, each writing what became of its weights.

    python -m torch.distributed.run --standalone --nproc-per-node=3 tests/integration/muon_ranks.py FOLDER
"""

import itertools
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from cloc.model.optimizers import Optimizers, matrices
from cloc.training.distributed import leave

STEPS, TAKEN_AFTER = 4, 2


class Run:
    """A model of linear layers of those widths, and its optimisers.

    Args:
        widths: of the layers' inputs and outputs.
        group: ranks that share Muon's work out.
    """

    def __init__(self, widths: tuple[int, ...], group: dist.ProcessGroup | None) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(*(nn.Linear(i, o) for i, o in itertools.pairwise(widths)))
        own = matrices(self.model)
        matrix = [p for p in self.model.parameters() if id(p) in own]
        groups = [(matrix[::2], 1.0), (matrix[1::2], 0.5)]
        rest = [p for p in self.model.parameters() if id(p) not in own]
        self.optimizers = Optimizers(
            [{"params": rest, "weight_decay": 0.0, "rate": 1.0}],
            [{"params": each, "weight_decay": 0.1, "rate": rate} for each, rate in groups if each],
            betas=(0.9, 0.98),
            group=group,
        )

    def step(self, number: int) -> None:
        """With gradients that depend on the step alone."""
        generator = torch.Generator().manual_seed(number)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        self.optimizers.step(1e-2 / (number + 1))

    def tensors(self) -> dict[str, Tensor]:
        """The state of the optimisers on this rank."""
        return self.optimizers.tensors({id(p): name for name, p in self.model.named_parameters()})

    def weights(self) -> dict[str, Tensor]:
        """Copies."""
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}


def resumed(widths: tuple[int, ...], weights: dict[str, Tensor], state: dict[str, Tensor]) -> Run:
    """A run that goes on from there."""
    run = Run(widths, dist.group.WORLD)
    run.model.load_state_dict(weights)
    run.optimizers.prepare()
    for name, tensor in run.tensors().items():
        tensor.copy_(state[name])
    return run


def main() -> None:
    dist.init_process_group("gloo")
    found: dict[str, Tensor] = {}
    for case, widths in {"many": (32, 16, 48, 16, 16, 64, 8), "few": (16, 32, 16)}.items():
        spread, alone = Run(widths, dist.group.WORLD), Run(widths, None)
        for number in range(STEPS):
            if number == TAKEN_AFTER:
                taken = resumed(widths, spread.weights(), {k: v.clone() for k, v in spread.tensors().items()})
            spread.step(number)
            alone.step(number)
            if number >= TAKEN_AFTER:
                taken.step(number)
        for way, run in {"spread": spread, "alone": alone, "taken": taken}.items():
            found |= {f"{case}/{way}/weights/{name}": tensor for name, tensor in run.weights().items()}
            found |= {f"{case}/{way}/state/{name}": tensor.clone() for name, tensor in run.tensors().items()}
    save_file(found, Path(sys.argv[1]) / f"{dist.get_rank()}.safetensors")
    dist.barrier()
    leave(0)


if __name__ == "__main__":
    main()
