"""How fast a training goes, and what it waits for."""

import time

import torch

from cloc.training.checkpoint import TrainingState
from cloc.training.distributed import total


class Clock:
    """Seconds in the training loop, those of earlier attempts included: by the clock, and of all ranks' processors."""

    def __init__(self, state: TrainingState) -> None:
        self._state, self._wall, self._cpu = state, time.monotonic(), time.process_time()

    @property
    def wall(self) -> float:
        """Seconds by the clock."""
        return self._state.wall_seconds + time.monotonic() - self._wall

    def cpu(self) -> float:
        """Processor seconds of all ranks; every rank must call it (it sums over them)."""
        own = torch.tensor(time.process_time() - self._cpu, dtype=torch.float64)
        device = "cuda" if torch.distributed.is_initialized() and torch.distributed.get_backend() == "nccl" else "cpu"
        return self._state.cpu_seconds + float(total(own.to(device)))
