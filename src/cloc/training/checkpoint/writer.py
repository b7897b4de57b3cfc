"""What torch.distributed.checkpoint saves through: a file a rank, then the index, then the marker."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from cloc.errors import ClocError
from cloc.training.checkpoint.files import Digest, write_tensors
from cloc.training.checkpoint.index import Place, to_json
from cloc.training.checkpoint.pieces import Piece
from cloc.training.checkpoint.shelf import Retention, Saved, Shelf, warn
from cloc.training.checkpoint.state import TrainingState


@dataclass(frozen=True)
class _Stored:
    """Where a piece was written, and what that whole file is."""

    place: Place
    digest: Digest


class Writer(StorageWriter):
    """Writes one checkpoint.

    Args:
        shelf: where to.
        state: what goes with the tensors.
        score: higher is better.
        retention: which checkpoints stay.
    """

    def __init__(self, shelf: Shelf, state: TrainingState, *, score: float | None, retention: Retention) -> None:
        self._shelf, self._state, self._score, self._retention = shelf, state, score, retention

    def reset(self, checkpoint_id: str | PathLike[str] | None = None) -> None:
        """Part of the interface: a writer is made for one checkpoint, and needs none."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | PathLike[str]) -> bool:
        """Part of the interface: it is found by no name."""
        return False

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Part of the interface: nothing is to be done before the plans are there."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """A rank writes what it holds, as planned."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Names each rank's file. Runs on the first rank, before any writes."""
        self._shelf.sweep()
        self._token = secrets.token_hex(4)
        return [replace(plan, storage_data=f"{rank:05d}-{self._token}.safetensors") for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes this rank's file; a rank that has nothing writes none."""
        done: Future[list[WriteResult]] = Future()
        done.set_result(self._write(plan, planner) if plan.items else [])
        return done

    def _write(self, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        pieces: dict[str, Piece] = {}
        for item in plan.items:
            data = item.tensor_data
            values = planner.resolve_data(item)
            assert data is not None, item
            assert isinstance(values, Tensor), item
            assert item.index.fqn not in pieces, f"two pieces of {item.index.fqn} on one rank"
            pieces[item.index.fqn] = Piece(values, tuple(data.chunk.offsets), tuple(data.size))
        name = str(plan.storage_data)
        with self._shelf.receiving(self._state.step, name) as path:
            written = write_tensors(path, pieces)
        results = []
        for item in plan.items:
            stored = _Stored(Place(name, written.starts[item.index.fqn]), written.digest)
            results.append(WriteResult(item.index, pieces[item.index.fqn].tensor.nbytes, stored))
        return results

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Writes the index and the marker, then removes old checkpoints. Runs on the first rank, after all wrote."""
        stored: Mapping[Any, _Stored] = {result.index: result.storage_data for rank in results for result in rank}
        index, body = f"tensors-{self._token}.json", to_json(metadata, {at: item.place for at, item in stored.items()})
        files = {item.place.file: item.digest for item in stored.values()} | {index: Digest.of(body)}
        saved = Saved(self._state, self._score, index, files)
        self._shelf.put(self._state.step, index, body)
        self._shelf.commit(saved)
        try:
            self._shelf.retain(saved, self._retention)
        except ClocError as error:  # the checkpoint is there
            warn(f"old checkpoints could not be removed: {error}")
