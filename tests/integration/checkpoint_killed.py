"""Run by test_checkpoint_storage.py as `checkpoint_killed.py FOLDER`: what only saves is killed again and again.

Prints the step that was found after each kill.
"""

import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from cloc.training.checkpoint import Checkpoints, TrainingState
from cloc.training.distributed import Rank, leave

KILLS = 4
ONE = Rank(0, 1, torch.device("cpu"))


def held(step: int) -> dict[str, Tensor]:
    return {f"layer.{number}": torch.full((500, 500), float(step)) for number in range(8)}


def save_on(url: str) -> NoReturn:
    """Saves one step after the other, from the newest checkpoint on."""
    checkpoints = Checkpoints(url, keep=1, rank=ONE, asynchronous=True)
    state = checkpoints.newest()
    for step in itertools.count(state.step + 1 if state else 1):
        checkpoints.save(held(step), TrainingState(step, {}))
    raise AssertionError("unreachable")


def committed(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("step-*/state.json")}


def main() -> None:
    folder, chance = Path(sys.argv[1]), random.Random(0)
    last = 0
    for _ in range(KILLS):
        before, child = committed(folder), os.fork()
        if not child:
            save_on(str(folder))
        while not committed(folder) - before:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = held(0)
        state = Checkpoints(str(folder), keep=1, rank=ONE).load(found)
        assert state.step > last, "a checkpoint was lost"
        assert all(bool((tensor == state.step).all()) for tensor in found.values()), "a mixture of two"
        last = state.step
        print(last, flush=True)
    leave(0)


if __name__ == "__main__":
    main()
