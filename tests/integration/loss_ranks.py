"""The contrastive losses of one global batch, its rows split over the ranks; each rank saves what it found.

torchrun --standalone --nproc-per-node=2 tests/integration/loss_ranks.py CASES.safetensors FOLDER

CASES holds, for each case NAME: NAME.a, NAME.b, NAME.valid, NAME.scale, NAME.bias (sigmoid alone), NAME.threshold,
NAME.tile, and NAME.frozen, a rank whose texts want no gradient (-1: none), with the rows of all ranks.
FOLDER/RANK.safetensors gets NAME.loss, NAME.valid_rows, NAME.dropped_pairs and NAME.grad.* for each; FOLDER/RANK.txt
what is said where the ranks hold different numbers of rows, and where one has no mask.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from cloc.model.losses import contrastive
from cloc.training.distributed import leave, process_group


def run(case: dict[str, Tensor], group: dist.ProcessGroup) -> dict[str, Tensor]:
    """Loss and gradients of a case on this rank's rows."""
    rank, rows = dist.get_rank(group), len(case["a"]) // dist.get_world_size(group)
    own = slice(rank * rows, (rank + 1) * rows)
    leaves = {name: case[name][own].clone().requires_grad_() for name in ("a", "b")}
    leaves |= {name: case[name].clone().requires_grad_() for name in ("scale", "bias") if name in case}
    leaves["b"].requires_grad_(case["frozen"].item() != rank)
    found = contrastive(
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
    return values | {f"grad.{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def refused(group: dist.ProcessGroup) -> list[str]:
    """What a rank is told when the arguments of the ranks do not go together."""
    rank = dist.get_rank(group)
    said = []
    for rows, valid_K in ((2 + rank, None), (2, torch.ones(2, dtype=torch.bool) if rank else None)):
        try:
            contrastive(torch.eye(rows, 3), torch.eye(rows, 3), scale=torch.ones(()), valid_K=valid_K, group=group)
            said.append("")
        except ValueError as error:
            said.append(str(error))
    return said


def main() -> None:
    with process_group("cpu") as rank:
        group = dist.group.WORLD
        assert group is not None
        cases = load_file(sys.argv[1])
        found: dict[str, Tensor] = {}
        for name in sorted({key.split(".")[0] for key in cases}):
            case = {key.split(".", 1)[1]: value for key, value in cases.items() if key.split(".")[0] == name}
            found |= {f"{name}.{key}": value for key, value in run(case, group).items()}
        folder = Path(sys.argv[2])
        save_file(found, folder / f"{rank.rank}.safetensors")
        (folder / f"{rank.rank}.txt").write_text("\n".join(refused(group)))


if __name__ == "__main__":
    main()
    leave(0)
