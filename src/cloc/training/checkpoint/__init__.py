"""Checkpoints: tensors as safetensors, the rest as JSON; whole or not there, so that a killed run can go on.

torch.distributed.checkpoint plans who writes and reads what, on any number of ranks; `Writer` and `Reader` put files of
tensors where it says (layout: see `shelf`), with checksums, in a folder or on S3. Nothing is ever unpickled.
"""

import traceback
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from cloc.data.storage import StorageError, Trouble, open_storage
from cloc.errors import ClocError, TrainingError
from cloc.training.checkpoint import generators, matching
from cloc.training.checkpoint.files import DamagedError
from cloc.training.checkpoint.group import Group
from cloc.training.checkpoint.index import from_json, tensors_of
from cloc.training.checkpoint.pieces import Piece, PiecePlanner, Shares, Stager, pieces
from cloc.training.checkpoint.reader import Reader
from cloc.training.checkpoint.shelf import Retention, Saved, Shelf, warn
from cloc.training.checkpoint.state import TrainingState
from cloc.training.checkpoint.writer import Writer
from cloc.training.distributed import Rank

__all__ = ["Checkpoints", "TrainingState"]

_FAILURES = 3


@dataclass
class _Outcome:
    """How saving goes: `failure` of the last save, how many `failed` in a row, step of the `good` checkpoint."""

    failure: BaseException | None = None
    failed: int = 0
    good: int | None = None


class Checkpoints:
    """The checkpoints of one run. Every rank makes it and calls every method, with one rank also without a group.

    A save that fails (the disk is full, the storage does not answer) leaves the last checkpoint as it is and prints a
    line; training goes on and the next save tries again. The third such failure in a row is a TrainingError of the
    `save` after it, and `wait` makes one of the first. What is no failure of the storage is raised at once.

    Args:
        url: folder or s3:// prefix.
        keep: how many of the newest are kept.
        rank: this process.
        keep_best: how many are kept besides for their score.
        asynchronous: whether `save` returns when it has copied the tensors, and writes them meanwhile.
    """

    def __init__(self, url: str, *, keep: int, rank: Rank, keep_best: int = 0, asynchronous: bool = False) -> None:
        self._url, self._rank = url, rank
        self._shelf = Shelf(open_storage(url))
        self._retention = Retention(keep, keep_best)
        self._group = Group()
        self._shares = Shares(self._group)
        self._stager = Stager() if asynchronous else None
        self._outcome = _Outcome()
        self._writing: Future[None] | None = None
        # One rank needs no group, and torch need not wonder each time.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", module="torch.distributed.checkpoint")

    def newest(self) -> TrainingState | None:
        """The state of the newest checkpoint; None when there is none.

        Raises:
            TrainingError: there are some, and none can be read.
        """
        saved = self._group.from_first(self._shelf.newest)
        return saved.state if saved else None

    def load(self, tensors: Mapping[str, Tensor]) -> TrainingState:
        """Loads the newest checkpoint that is whole into these tensors, in place, and torch's random generators.

        Every byte that is read is checked. When one is damaged a line says so, and the one before it is tried.

        Args:
            tensors: as for `save`; a rank may ask for what another one has saved.

        Returns:
            The state that belongs to it, which is an older one than `newest` said where that one was damaged.

        Raises:
            TrainingError: it has other tensors (another architecture), or none is whole.
        """
        saved = self._group.from_first(self._shelf.newest)
        while saved:
            try:
                self._load(saved, tensors)
            except DamagedError as error:
                if self._rank.is_first:
                    warn(f"{error}; the checkpoint before it is tried")
                saved = self._group.from_first(partial(self._shelf.newest, before=saved.state.step))
                continue
            self._outcome.good = saved.state.step
            return saved.state
        raise TrainingError(f"{self._url}: no checkpoint in it is whole; remove it to start anew")

    def _load(self, saved: Saved, tensors: Mapping[str, Tensor]) -> None:
        where = self._shelf.where(saved.state.step)
        metadata = from_json(self._group.from_first(partial(self._shelf.index, saved)), where=where)
        matching.check(metadata, tensors, group=self._group, where=where)
        stored = tensors_of(metadata)
        own = {
            name: torch.empty(stored[name].size, dtype=stored[name].properties.dtype)
            for name in generators.states(self._rank)
            if name in stored
        }
        try:
            load(
                {**tensors, **own},
                storage_reader=Reader(self._shelf, saved, metadata),
                planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
                process_group=self._group.process_group,
                no_dist=self._group.process_group is None,
            )
        except CheckpointException as error:
            raise _cause(error) from None
        generators.restore(own, self._rank)

    def save(self, tensors: Mapping[str, Tensor], state: TrainingState, *, score: float | None = None) -> None:
        """Writes a checkpoint, and removes those that are kept no longer. Waits for the one before it first.

        Args:
            tensors: by name; of all ranks together. A name that several ranks hold is the same tensor, or a DTensor.
                They may change as soon as this returns.
            state: the rest.
            score: higher is better; for `keep_best`.

        Raises:
            TrainingError: saving failed three times in a row.
        """
        self._join()
        self._raise_if(self._outcome.failed >= _FAILURES)
        own = self._shares.mine(pieces(tensors)) | pieces(generators.states(self._rank))
        arguments: dict[str, Any] = {
            "storage_writer": Writer(self._shelf, state, score=score, retention=self._retention),
            "planner": PiecePlanner(),
            "process_group": self._group.process_group,
            "no_dist": self._group.process_group is None,
        }
        if self._stager:
            self._save_meanwhile(own, state.step, arguments)
        else:
            try:
                save(own, **arguments)
            except CheckpointException as error:
                self._settle(state.step, error)
            else:
                self._settle(state.step, None)
        self._raise_if(self._writing is None and self._outcome.failed >= _FAILURES)

    def _save_meanwhile(self, own: dict[str, Piece], step: int, arguments: dict[str, Any]) -> None:
        settled: Future[None] = Future()

        def settle(done: Future[Any]) -> None:
            try:
                self._settle(step, done.exception())
            finally:
                settled.set_result(None)

        self._writing = settled
        written = async_save(own, async_stager=self._stager, **arguments)
        assert isinstance(written, Future), "the stager copies before it returns"
        written.add_done_callback(settle)

    def _settle(self, step: int, error: BaseException | None) -> None:
        """Notes how a save ended; after a failure its files go and a line says what happened."""
        if error is None:
            self._outcome = _Outcome(good=step)
            return
        self._outcome.failed += 1
        # torch hands on what a rank raised; everything else is about the ranks themselves.
        cause = _cause(error) if isinstance(error, CheckpointException) else error
        if not isinstance(cause, ClocError):
            self._outcome.failure = cause
            if isinstance(error, CheckpointException):
                traceback.print_exception(error)
            else:
                warn(f"checkpoint of step {step} could not be written, for the ranks lost touch: {_line(error)}")
            return
        full = "disk full: " if isinstance(cause, StorageError) and cause.trouble is Trouble.FULL else ""
        good = self._outcome.good
        stays = "there is no checkpoint yet" if good is None else f"the last good checkpoint, step {good}, stays"
        text = f"checkpoint of step {step} could not be written: {full}{cause}; {stays}"
        self._outcome.failure = TrainingError(f"{text}; free some space" if full else text)
        if self._rank.is_first:
            warn(f"{self._outcome.failure}; training goes on, and the next save tries again")
            self._sweep()

    def _sweep(self) -> None:
        """Gives the room back that a failed save took; all ranks have ended it."""
        try:
            self._shelf.sweep()
        except ClocError as error:
            warn(f"the rest of a failed checkpoint could not be removed: {error}")

    def _join(self) -> None:
        """Waits for what is being written. A defect of the program is raised."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None
        self._raise_if(not isinstance(self._outcome.failure, ClocError))

    def _raise_if(self, hopeless: bool) -> None:
        if hopeless and self._outcome.failure is not None:
            raise self._outcome.failure

    def wait(self) -> None:
        """Waits for the writing of the last checkpoint. Raises TrainingError when it failed."""
        self._join()
        self._raise_if(True)

    def close(self) -> None:
        """Lets the last checkpoint be written and raises nothing: for the end of a run, however it ends."""
        if self._writing is not None:
            self._writing.result()


def _cause(error: CheckpointException) -> BaseException:
    """What stopped the lowest rank of those that failed; what is no damage comes first."""
    causes = [cause for _, (cause, _) in sorted(error.failures.items())]
    return next((cause for cause in causes if not isinstance(cause, DamagedError)), causes[0])


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
