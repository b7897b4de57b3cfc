"""Checkpoints: tensors as safetensors, the rest as JSON; whole or not there, so that a killed run can go on.

checkpoints/step-00000200/{tensors.safetensors, state.json}
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from cloc.errors import TrainingError
from cloc.training.distributed import Rank


@dataclass(frozen=True)
class TrainingState:
    """Where a run stands, but for its tensors: JSON values.

    Attributes:
        step: optimiser steps done.
        identity: what must not change when a run goes on (settings, data), by name.
        cpu_seconds, wall_seconds: spent in the training loop by all ranks together, and by the clock.
        loader: where the streams of batches stand (`TrainLoader.state_dict`, of all ranks); empty at the start.
        judge: what the judge of anomalies knows.
        skipped: batches that were skipped so far.
    """

    step: int
    identity: Mapping[str, Any]
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    loader: Mapping[str, Any] = field(default_factory=dict)
    judge: Mapping[str, Any] = field(default_factory=dict)
    skipped: int = 0

    def check(self, identity: Mapping[str, Any], *, where: str) -> None:
        """Raises TrainingError when a run of that identity cannot go on from this state; names what differs."""
        differing = [
            f"{name} was {self.identity.get(name)!r} and is {identity.get(name)!r}"
            for name in sorted(self.identity.keys() | identity.keys())
            if self.identity.get(name) != identity.get(name)
        ]
        if differing:
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise TrainingError(
                f"{where} belongs to a run with other settings or data: {'; '.join(differing[:3])}{more}; "
                "restore them, or remove the checkpoints to start anew"
            )


class Checkpoints:
    """The checkpoints of one run. Every rank calls every method.

    Args:
        url: folder or s3:// prefix.
        keep: how many of the newest are kept.
        rank: this process.
        keep_best: how many are kept besides for their score.
        asynchronous: whether `save` returns while it is being written.
    """

    def __init__(self, url: str, *, keep: int, rank: Rank, keep_best: int = 0, asynchronous: bool = False) -> None:
        self._folder, self._keep, self._rank = Path(url), keep, rank

    def _all(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("step-*") if (path / "state.json").is_file())

    def newest(self) -> TrainingState | None:
        """The state of the newest checkpoint; None when there is none."""
        found = self._all()
        return TrainingState(**json.loads((found[-1] / "state.json").read_text())) if found else None

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Loads the newest checkpoint's tensors into these, in place.

        Raises:
            TrainingError: it has other tensors (another architecture), or is damaged.
        """
        loaded = load_file(self._all()[-1] / _TENSORS)
        for name, tensor in tensors.items():
            tensor.copy_(loaded[name])

    def save(self, tensors: Mapping[str, Tensor], state: TrainingState, *, score: float | None = None) -> None:
        """Writes a checkpoint, and removes those that are kept no longer.

        Args:
            tensors: by name; of all ranks together. A name that several ranks hold is the same tensor, or a DTensor.
            state: the rest.
            score: higher is better; for `keep_best`.
        """
        if not self._rank.is_first:
            return
        final = self._folder / f"step-{state.step:08d}"
        temporary = self._folder / f".tmp-{os.getpid()}-{final.name}"
        temporary.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary / _TENSORS)
        (temporary / "state.json").write_text(json.dumps(asdict(state), indent=2) + "\n")
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        for old in self._all()[: -self._keep]:
            shutil.rmtree(old)

    def wait(self) -> None:
        """Waits for the writing of the last checkpoint. Raises TrainingError when it failed."""


_TENSORS = "tensors.safetensors"
