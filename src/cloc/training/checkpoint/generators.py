"""torch's generators of random numbers as tensors of a checkpoint: `rng.<rank>.cpu` and `rng.<rank>.cuda`."""

from collections.abc import Mapping

import torch
from torch import Tensor

from cloc.training.distributed import Rank

PREFIX = "rng."


def states(rank: Rank) -> dict[str, Tensor]:
    """Copies of the states of this rank's generators by name, bytes each."""
    found = {f"{PREFIX}{rank.rank}.cpu": torch.get_rng_state()}
    if rank.device.type == "cuda":
        found[f"{PREFIX}{rank.rank}.cuda"] = torch.cuda.get_rng_state(rank.device)
    return found


def restore(saved: Mapping[str, Tensor], rank: Rank) -> None:
    """Puts this rank's generators where they were; one that is not there (another number of ranks) stays as it is."""
    if (state := saved.get(f"{PREFIX}{rank.rank}.cpu")) is not None:
        torch.set_rng_state(state)
    if (state := saved.get(f"{PREFIX}{rank.rank}.cuda")) is not None:
        torch.cuda.set_rng_state(state, rank.device)
