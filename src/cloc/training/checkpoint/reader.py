"""What torch.distributed.checkpoint loads through: each file that a rank needs is read once and checked.

A piece that is wanted whole goes straight into its tensor; of others a rank holds one at a time, a thread.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from cloc.training.checkpoint.files import byte_view
from cloc.training.checkpoint.index import Place, tensors_of
from cloc.training.checkpoint.shelf import Saved, Shelf

_THREADS = 4


class Reader(StorageReader):
    """Reads one checkpoint.

    Args:
        shelf: where from.
        saved: the checkpoint.
        metadata: its index.
    """

    def __init__(self, shelf: Shelf, saved: Saved, metadata: Metadata) -> None:
        self._shelf, self._saved, self._metadata = shelf, saved, metadata
        self._places: Mapping[MetadataIndex, Place] = metadata.storage_data
        self._shapes = {
            MetadataIndex(name, chunk.offsets): (chunk.sizes, tensor.properties.dtype)
            for name, tensor in tensors_of(metadata).items()
            for chunk in tensor.chunks
        }

    def reset(self, checkpoint_id: str | PathLike[str] | None = None) -> None:
        """Part of the interface: a reader is made for one checkpoint, and needs none."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | PathLike[str]) -> bool:
        """Part of the interface: it is found by no name."""
        return False

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index, as given."""
        return self._metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Part of the interface: everything is there already."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """A rank reads what it wants, as planned."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Ranks read without each other."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Reads all files that the plan needs, some at once. Raises DamagedError."""
        wanted: dict[str, dict[MetadataIndex, list[ReadItem]]] = defaultdict(lambda: defaultdict(list))
        for item in plan.items:
            wanted[self._places[item.storage_index].file][item.storage_index].append(item)
        if wanted:
            with ThreadPoolExecutor(min(_THREADS, len(wanted))) as threads:
                for _ in threads.map(lambda file: self._read_file(file, wanted[file], planner), sorted(wanted)):
                    pass
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read_file(self, file: str, wanted: Mapping[MetadataIndex, list[ReadItem]], planner: LoadPlanner) -> None:
        with self._shelf.opened(self._saved, file) as stream:
            for index in sorted(wanted, key=lambda index: self._places[index].start):
                stream.skip_to(self._places[index].start)
                targets = [planner.resolve_tensor(item).detach() for item in wanted[index]]
                sizes, dtype = self._shapes[index]
                if len(targets) == 1 and _takes_bytes(targets[0], sizes, dtype):
                    stream.read_into(byte_view(targets[0]))
                else:
                    room = torch.empty(math.prod(sizes), dtype=dtype).reshape(sizes)
                    stream.read_into(byte_view(room))
                    for target, item in zip(targets, wanted[index], strict=True):
                        target.copy_(_part(room, item))
                for target, item in zip(targets, wanted[index], strict=True):
                    planner.commit_tensor(item, target)


def _takes_bytes(target: Tensor, sizes: torch.Size, dtype: torch.dtype) -> bool:
    """Whether a stored piece may be read into this memory as it is."""
    return target.shape == sizes and target.dtype == dtype and target.is_cpu and target.is_contiguous()


def _part(piece: Tensor, item: ReadItem) -> Tensor:
    """The rectangle of a stored piece that an item wants."""
    for dim, (offset, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
        piece = piece.narrow(dim, offset, length)
    return piece
