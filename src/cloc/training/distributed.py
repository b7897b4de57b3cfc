"""What ranks say to each other: start and end of the group, and sums.

With one rank every function is the identity, so that the code above knows no special case.
"""

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cloc.errors import TrainingError

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
def process_group(device: str, *, timeout_seconds: float = 1800, section: str = "train") -> Iterator[Rank]:
    """Joins the group that torchrun's variables name (none: a group of one) and leaves it at the end.

    After an error the group is left as it is, for the others must not learn of it before this rank has said why: call
    `leave`, which ends every connection.

    Args:
        device: "auto" (CUDA when there is any), "cpu" or "cuda".
        timeout_seconds: how long ranks wait for each other.
        section: of the settings that has the device and the number of processes.

    Raises:
        TrainingError: there is no GPU, or not one a process.
    """
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    where = _own_gpu(section) if use_cuda else torch.device("cpu")
    if "RANK" not in os.environ:
        yield Rank(0, 1, where)
        return
    dist.init_process_group(
        # Beside NCCL there is gloo for what lies in main memory: checkpoints, what ranks tell each other.
        "cpu:gloo,cuda:nccl" if use_cuda else "gloo",
        timeout=timedelta(seconds=timeout_seconds),
        device_id=where if use_cuda else None,
    )
    yield Rank(dist.get_rank(), dist.get_world_size(), where)
    dist.destroy_process_group()


def _own_gpu(section: str) -> torch.device:
    """The GPU of this process. Every process of the machine comes to the same verdict."""
    if not torch.cuda.is_available():
        raise TrainingError(
            f"{section}.device is cuda, but PyTorch {torch.__version__} sees no GPU here; look at nvidia-smi and at "
            f"the build of PyTorch, or set {section}.device=cpu"
        )
    local, processes = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if processes > (gpus := torch.cuda.device_count()):
        raise TrainingError(
            f"{processes} processes ({section}.processes) share {gpus} GPUs here; each needs its own: set "
            f"{section}.processes={gpus}"
        )
    where = torch.device("cuda", local)
    torch.cuda.set_device(where)
    return where


def seed_everything(seed: int) -> None:
    """Seeds the random numbers of Python, NumPy and PyTorch, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


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


def gathered(value: T, *, group: dist.ProcessGroup | None = None) -> list[T]:
    """The values of all ranks, by rank: small ones, of any type. Over another group of all ranks where one is given."""
    if world_size() == 1:
        return [value]
    found: list[T] = [value] * world_size()
    dist.all_gather_object(found, value, group=group)
    return found


def world_size() -> int:
    """Number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1
