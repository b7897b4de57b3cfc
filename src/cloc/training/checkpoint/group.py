"""The ranks of a run as checkpoints need them: a group of their own.

Checkpoints are written while training goes on, in a thread whose collectives must never meet those of training on one
group; and theirs are of small Python objects, which want gloo whatever training uses.
"""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from cloc.errors import ClocError
from cloc.training.distributed import gathered

T = TypeVar("T")
R = TypeVar("R")


class Group:
    """All ranks, once more. Every rank makes it; the methods are collective, and with one rank the identity.

    Attributes:
        process_group: over gloo; None where this process has no ranks beside it.
        rank, size: this process in it.
    """

    def __init__(self) -> None:
        self.process_group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self.rank = dist.get_rank() if self.process_group else 0
        self.size = dist.get_world_size() if self.process_group else 1

    def all(self, value: T) -> list[T]:
        """The values of all ranks, by rank."""
        return gathered(value, group=self.process_group)

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first rank makes. What it raises, all ranks raise."""
        if self.size == 1:
            return make()
        sent: list[T | Exception | None] = [None]
        defect: Exception | None = None
        if self.rank == 0:
            try:
                sent = [make()]
            except ClocError as error:
                sent = [error]
            except Exception as error:  # its type may not travel; its text does
                sent, defect = [RuntimeError(f"first rank: {type(error).__name__}: {error}")], error
        dist.broadcast_object_list(sent, src=0, group=self.process_group)
        made = sent[0]
        if isinstance(made, Exception):
            raise defect or made
        return made  # type: ignore[return-value]  # None is a T here

    def divided(self, value: T, divide: Callable[[list[T]], list[R]]) -> R:
        """This rank's part of what the first rank makes of all ranks' values."""
        if self.size == 1:
            return divide([value])[0]
        found: list[T] | None = [value] * self.size if self.rank == 0 else None
        dist.gather_object(value, found, dst=0, group=self.process_group)
        part: list[R | None] = [None]
        dist.scatter_object_list(part, divide(found) if found else None, src=0, group=self.process_group)
        return part[0]  # type: ignore[return-value]  # scatter has put it there
