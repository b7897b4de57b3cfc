"""Checkpoints: tensors as safetensors, the rest as JSON; whole or not there, so that a killed run can go on.

checkpoints/step-00000200/{model.safetensors, optimizer.safetensors, state.json}
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cloc.errors import TrainingError
from cloc.model.optimizers import Optimizers


@dataclass(frozen=True)
class TrainingState:
    """Where a run stands.

    Attributes:
        step: optimiser steps done.
        fingerprint: of everything that must not change when a run goes on (settings, data, ranks).
        cpu_seconds, wall_seconds: spent in the training loop by all ranks together, and by the clock.
        loaders: where each rank's stream of batches stands; empty at the start.
    """

    step: int
    fingerprint: str
    cpu_seconds: float
    wall_seconds: float
    loaders: Sequence[Mapping[str, Any]] = ()


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie.
        keep: how many of the newest are kept.
    """

    def __init__(self, folder: str | Path, *, keep: int) -> None:
        self._folder, self._keep = Path(folder), keep

    def _all(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("step-*") if (path / "state.json").is_file())

    def save(self, model: nn.Module, optimizers: Optimizers, state: TrainingState) -> Path:
        """Writes a checkpoint under a temporary name, renames it, and removes the oldest beyond `keep`."""
        final = self._folder / f"step-{state.step:08d}"
        temporary = self._folder / f".tmp-{os.getpid()}-{final.name}"
        temporary.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, temporary / _MODEL)
        save_file(optimizers.tensors(), temporary / _OPTIMIZER)
        (temporary / "state.json").write_text(json.dumps(asdict(state), indent=2) + "\n")
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        for old in self._all()[: -self._keep]:
            shutil.rmtree(old)
        return final

    def restore(
        self, model: nn.Module, optimizers: Optimizers, *, fingerprint: str, device: torch.device
    ) -> TrainingState | None:
        """Loads the newest checkpoint into model and optimisers; None when there is none.

        Raises:
            TrainingError: the newest checkpoint belongs to a run with other settings or data.
        """
        found = self._all()
        if not found:
            return None
        newest = found[-1]
        state = TrainingState(**json.loads((newest / "state.json").read_text()))
        if state.fingerprint != fingerprint:
            raise TrainingError(
                f"{newest} belongs to a run with other settings, data or number of processes; "
                f"remove {self._folder} to start anew, or restore the settings"
            )
        model.load_state_dict(load_file(newest / _MODEL, device=str(device)))
        optimizers.load(load_file(newest / _OPTIMIZER, device=str(device)))
        return state


_MODEL, _OPTIMIZER = "model.safetensors", "optimizer.safetensors"
