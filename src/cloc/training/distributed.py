"""What ranks say to each other: start and end of the group, and sums.

With one rank every function is the identity, so that the code above knows no special case.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Rank:
    """This process in its group."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this rank logs and saves."""
        return self.rank == 0


@contextmanager
def process_group(device: str) -> Iterator[Rank]:
    """Joins the group that torchrun's variables name (none: a group of one) and leaves it at the end.

    Args:
        device: "auto" (CUDA when there is any), "cpu" or "cuda".
    """
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    where = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(where)
    if "RANK" not in os.environ:
        yield Rank(0, 1, where)
        return
    dist.init_process_group("nccl" if use_cuda else "gloo")
    try:
        yield Rank(dist.get_rank(), dist.get_world_size(), where)
    finally:
        dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """Ends a rank's process without destructors.

    Destroying DDP holds the interpreter's lock while it waits for gloo's threads, and these may wait for that lock to
    let go of their last work: seen to hang at exit in about one of five runs with torch 2.13.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def group() -> dist.ProcessGroup | None:
    """The ranks that share a batch; None with one rank."""
    return dist.group.WORLD if world_size() > 1 else None


def total(value: Tensor) -> Tensor:
    """Sum over the ranks, without gradient."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value.detach()
    summed = value.detach().clone()
    dist.all_reduce(summed)
    return summed


def gathered(value: T) -> list[T]:
    """The values of all ranks, by rank: small ones, of any type."""
    if world_size() == 1:
        return [value]
    found: list[T] = [value] * world_size()
    dist.all_gather_object(found, value)
    return found


def world_size() -> int:
    """Number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1
