"""Faults for tests of training: Python imports this at its start where this folder is on PYTHONPATH.

The variable TEST_FAULT tells, as JSON, what goes wrong in which rank, before its n-th step (from 1) of this start:
{"rank": 1, "step": 3, "do": "kill", "marker": "FILE"}. A fault with a marker happens once, whatever is started again.
{"do": "poison", "key": "000007"} makes the loss of every batch with that sample NaN.
"""

import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

FAULT = json.loads(os.environ.get("TEST_FAULT", "null"))
LATER_STEP_SECONDS = 0.5  # after a signal: it comes by way of other processes


def _kill(batch: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _signal_self(batch: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _signal_launcher(batch: Any) -> None:
    os.kill(int(os.environ["TEST_LAUNCHER"]), signal.Signals[FAULT["signal"]])


def _kill_all(batch: Any) -> None:
    """The launching process and all below it: as when the machine is switched off."""
    import psutil

    launcher = psutil.Process(int(os.environ["TEST_LAUNCHER"]))
    family = [launcher, *launcher.children(recursive=True)]
    for process in sorted(family, key=lambda item: item.pid == os.getpid()):
        process.kill()


def _gpu_memory(batch: Any) -> None:
    import torch

    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1 is free."
    )


def _host_memory(batch: Any) -> None:
    import torch

    torch.empty(1 << 50)  # a petabyte


def _defect(batch: Any) -> None:
    raise KeyError("a defect of the program")


def _stand_still(batch: Any) -> None:
    time.sleep(3600)


def _is_due() -> bool:
    """Whether the fault is this rank's, and still to happen."""
    marker = Path(FAULT.get("marker", "/nowhere"))
    if marker.exists() or os.environ.get("RANK", "0") != str(FAULT["rank"]):
        return False
    if "marker" in FAULT:
        marker.write_text("")
    return True


ACTS: dict[str, Callable[[Any], None]] = {
    "kill": _kill,
    "sigterm": _signal_self,
    "signal launcher": _signal_launcher,
    "kill all": _kill_all,
    "gpu memory": _gpu_memory,
    "host memory": _host_memory,
    "defect": _defect,
    "stand still": _stand_still,
}


def _before_steps(owner: type, name: str) -> None:
    """Puts the fault before a method that is called once a step."""
    plain, steps, done = getattr(owner, name), 0, False

    def step(self: Any, batch: Any, *rest: Any) -> Any:
        nonlocal steps, done
        steps += 1
        if steps == FAULT["step"] and _is_due():
            done = True
            ACTS[FAULT["do"]](batch)
        elif done and "signal" in FAULT["do"]:
            time.sleep(LATER_STEP_SECONDS)
        return plain(self, batch, *rest)

    setattr(owner, name, step)


def _patch(module: ModuleType) -> None:
    """Puts the fault before the steps of pre-training."""
    _before_steps(module.Stepper, "backward")


def _patch_tuning(module: ModuleType) -> None:
    """Puts the fault before the steps of adapter tuning."""
    _before_steps(module.Tuning, "_step")


def _poison(module: ModuleType) -> None:
    """Makes the loss of every batch with the sample `key` NaN."""
    plain = module.CLOCTask.losses

    def losses(self: Any, embeddings: Any, batch: Any, *rest: Any, **named: Any) -> Any:
        found = plain(self, embeddings, batch, *rest, **named)
        return replace(found, total=found.total * float("nan")) if FAULT["key"] in batch.keys else found

    module.CLOCTask.losses = losses


def _kill_in_save(module: ModuleType) -> None:
    """Kills the rank when it has written a file of the checkpoint of that step, and before the file is in its place."""
    plain = module.Shelf.receiving

    @contextmanager
    def receiving(self: Any, step: int, name: str) -> Iterator[Path]:
        with plain(self, step, name) as path:
            yield path
            if step == FAULT["step"] and _is_due():
                _kill(None)

    module.Shelf.receiving = receiving


KIND = FAULT["do"] if FAULT else ""
PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "poison": {"cloc.training.task": _poison},
    "kill in save": {"cloc.training.checkpoint.shelf": _kill_in_save},
}.get(KIND, {"cloc.training.step": _patch, "cloc.mllm.tuning": _patch_tuning})


class _Loader(importlib.abc.Loader):
    def __init__(self, plain: importlib.abc.Loader, patch: Callable[[ModuleType], None]) -> None:
        self._plain, self._patch = plain, patch

    def exec_module(self, module: ModuleType) -> None:
        self._plain.exec_module(module)
        self._patch(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in PATCHES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.loader is not None
        spec.loader = _Loader(spec.loader, PATCHES[fullname])
        return spec


if FAULT:
    sys.meta_path.insert(0, _Finder())
