"""The part of a tensor that one rank holds, what a rank saves of all its parts, and the copy that it writes from.

Pieces stand between tensors of whatever kind (plain ones, DTensors of FSDP2) and torch.distributed.checkpoint, whose
plans are made of them. A tensor that several ranks hold whole is written by one of them, and copied by that one alone:
under DDP on N ranks each copies and writes an N-th of the state.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.staging import AsyncStager
from torch.distributed.tensor import DTensor

from cloc.training.checkpoint.group import Group


@dataclass(frozen=True)
class Piece:
    """A rectangle of a tensor.

    Attributes:
        tensor: its values, on whatever device.
        offsets: where it begins in the whole tensor, by dimension.
        shape: of the whole tensor.
    """

    tensor: Tensor
    offsets: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the tensor."""
        return tuple(self.tensor.shape) == self.shape


def pieces(tensors: Mapping[str, Tensor]) -> dict[str, Piece]:
    """What this rank holds of each tensor; nothing of those that have no rows left for it. They share memory."""
    found = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            (chunk,) = tensor.__create_chunk_list__()
            piece = Piece(tensor.to_local().detach(), tuple(chunk.offsets), tuple(tensor.shape))
        else:
            piece = Piece(tensor.detach(), (0,) * tensor.ndim, tuple(tensor.shape))
        if piece.tensor.numel() or piece.is_whole:
            found[name] = piece
    return found


class PiecePlanner(DefaultSavePlanner):
    """torch's planner for dictionaries of pieces: it drops double ones and checks that all make whole tensors."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._pieces: dict[str, Piece] = {}

    def set_up_planner(
        self, state_dict: dict[str, Piece], storage_meta: StorageMeta | None = None, is_coordinator: bool = False
    ) -> None:
        self._pieces, self.is_coordinator = state_dict, is_coordinator

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan([_write_item(name, piece) for name, piece in self._pieces.items()])
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        return self._pieces[write_item.index.fqn].tensor


def _write_item(name: str, piece: Piece) -> WriteItem:
    offsets, sizes = torch.Size(piece.offsets), piece.tensor.shape
    return WriteItem(
        index=MetadataIndex(name, offsets),
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=ChunkStorageMetadata(offsets=offsets, sizes=sizes),
            properties=TensorProperties(dtype=piece.tensor.dtype),
            size=torch.Size(piece.shape),
        ),
    )


class Shares:
    """Which of the tensors that several ranks hold whole each of them saves: the same ones, as long as none changes.

    A rank may hold tensors that others do not.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._signatures: list[bytes] = []
        self._names: set[str] = set()

    def mine(self, held: Mapping[str, Piece]) -> dict[str, Piece]:
        """The pieces that this rank saves, of all that it holds; every rank calls it."""
        whole = {name: piece for name, piece in held.items() if piece.is_whole}
        signatures = self._group.all(_signature(whole))
        if signatures != self._signatures:
            self._names = self._divide(whole, alike=len(set(signatures)) == 1)
            self._signatures = signatures
        return {name: piece for name, piece in held.items() if name not in whole or name in self._names}

    def _divide(self, whole: dict[str, Piece], *, alike: bool) -> set[str]:
        planner = PiecePlanner()
        planner.set_up_planner(whole)
        own = planner.create_local_plan()

        def divide(plans: list[SavePlan]) -> list[set[str]]:
            return [{item.index.fqn for item in plan.items} for plan in planner.create_global_plan(plans)[0]]

        if alike:  # each knows the others' plans
            return divide([own] * self._group.size)[self._group.rank]
        return self._group.divided(own, divide)


def _signature(held: Mapping[str, Piece]) -> bytes:
    """Differs with names, shapes and types."""
    text = repr([(name, piece.shape, piece.tensor.dtype) for name, piece in sorted(held.items())])
    return hashlib.sha256(text.encode()).digest()


class Stager(AsyncStager):
    """Copies pieces to memory of the host, which stays for the next ones: what training changes then is not written."""

    _synchronize_after_execute = False

    def __init__(self) -> None:
        self._copies: dict[str, Tensor] = {}

    @torch.no_grad()
    def stage(self, state_dict: dict[str, Piece]) -> dict[str, Piece]:
        """The same pieces as copies; all are made when this returns."""
        self._copies = {name: self._room(name, piece.tensor) for name, piece in state_dict.items()}
        for name, piece in state_dict.items():
            self._copies[name].copy_(piece.tensor, non_blocking=True)
        if any(piece.tensor.is_cuda for piece in state_dict.values()):
            torch.cuda.current_stream().synchronize()
        return {name: Piece(self._copies[name], piece.offsets, piece.shape) for name, piece in state_dict.items()}

    def synchronize_staging(self) -> None:
        """Part of the interface: nothing is left to wait for."""

    def close(self) -> None:
        """Lets the memory go."""
        self._copies = {}

    def _room(self, name: str, tensor: Tensor) -> Tensor:
        room = self._copies.get(name)
        if room is None or room.shape != tensor.shape or room.dtype != tensor.dtype:
            room = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return room
