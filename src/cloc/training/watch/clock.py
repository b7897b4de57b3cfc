"""Time and memory of a training, whatever it trains."""

import time
from collections.abc import Callable

import psutil
import torch

from cloc.training.checkpoint.state import TrainingState
from cloc.training.distributed import total

_GIB = 2**30


class Clock:
    """Seconds in the training loop, those of earlier attempts included: by the clock, and of all ranks' processors.

    Args:
        state: where the run goes on from.
        background: processor seconds of this process that are none of training's (what tells MLflow).
    """

    def __init__(self, state: TrainingState, *, background: Callable[[], float] = lambda: 0.0) -> None:
        self._state, self._background = state, background
        self._wall, self._cpu = time.monotonic(), self._own()

    @property
    def wall(self) -> float:
        """Seconds by the clock."""
        return self._state.wall_seconds + time.monotonic() - self._wall

    def cpu(self) -> float:
        """Processor seconds of all ranks; every rank must call it (it sums over them)."""
        own = torch.tensor(self._own() - self._cpu, dtype=torch.float64)
        return self._state.cpu_seconds + float(total(own))

    def _own(self) -> float:
        return time.process_time() - self._background()


def memory_figures(device: torch.device) -> dict[str, float]:
    """system/gpu_memory_gib and gpu_memory_reserved_gib (the most so far), or system/memory_gib (this process, now)."""
    if device.type != "cuda":
        return {"system/memory_gib": psutil.Process().memory_info().rss / _GIB}
    return {
        "system/gpu_memory_gib": torch.cuda.max_memory_allocated(device) / _GIB,
        "system/gpu_memory_reserved_gib": torch.cuda.max_memory_reserved(device) / _GIB,
    }
