"""The contrastive losses of one global batch, its rows split over the ranks; each rank saves what it found.

torchrun --standalone --nproc-per-node=2 tests/integration/loss_ranks.py CASES.safetensors FOLDER

CASES holds, for each case NAME: NAME.a, NAME.b, NAME.valid, NAME.scale, NAME.bias (sigmoid alone), NAME.threshold and
NAME.tile, with the rows of all ranks. FOLDER/RANK.safetensors gets NAME.loss, NAME.valid_rows, NAME.dropped_pairs and
NAME.grad.* for each.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from cloc.model.losses import contrastive_pairs
from cloc.training.distributed import leave, process_group


def run(case: dict[str, Tensor], group: dist.ProcessGroup) -> dict[str, Tensor]:
    """Loss and gradients of a case on this rank's rows."""
    rows = len(case["a"]) // dist.get_world_size(group)
    own = slice(dist.get_rank(group) * rows, (dist.get_rank(group) + 1) * rows)
    leaves = {name: case[name][own].clone().requires_grad_() for name in ("a", "b")}
    leaves |= {name: case[name].clone().requires_grad_() for name in ("scale", "bias") if name in case}
    found = contrastive_pairs(
        leaves["a"],
        leaves["b"],
        scale=leaves["scale"],
        bias=leaves.get("bias"),
        kind="sigmoid" if "bias" in leaves else "infonce",
        valid_K=case["valid"][own].bool(),
        similar_text_threshold=case["threshold"].item(),
        group=group,
        tile=int(case["tile"]),
    )
    (found.loss * 3).backward()  # a factor, as lambda is one
    values = {name: value.detach().reshape(1) for name, value in vars(found).items()}
    return values | {
        f"grad.{name}": leaf.grad.reshape(-1, leaf.shape[-1] if leaf.dim() else 1) for name, leaf in leaves.items()
    }


def main() -> None:
    with process_group("cpu") as rank, torch.autograd.set_detect_anomaly(True):
        cases = load_file(sys.argv[1])
        found: dict[str, Tensor] = {}
        for name in sorted({key.split(".")[0] for key in cases}):
            case = {key.split(".", 1)[1]: value for key, value in cases.items() if key.split(".")[0] == name}
            found |= {f"{name}.{key}": value for key, value in run(case, dist.group.WORLD).items()}
        save_file(found, Path(sys.argv[2]) / f"{rank.rank}.safetensors")


if __name__ == "__main__":
    main()
    leave(0)
