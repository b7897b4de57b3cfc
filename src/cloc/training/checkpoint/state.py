"""Where a run stands, but for its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cloc.errors import TrainingError


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
        counts: what else is counted over the whole run.
    """

    step: int
    identity: Mapping[str, Any]
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    loader: Mapping[str, Any] = field(default_factory=dict)
    judge: Mapping[str, Any] = field(default_factory=dict)
    skipped: int = 0
    counts: Mapping[str, Any] = field(default_factory=dict)

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
