"""The loop that fits a teacher: two optimisers, a schedule, a record, a line of progress."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cloc.errors import TrainingError
from cloc.model.optimizers import Optimizers, matrices

_CLIP = 1.0
_BETAS = (0.9, 0.98)
_WARMUP = 0.06  # share of the steps
_SILENCE = 5.0  # seconds between lines of progress at most


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to fit.

    Attributes:
        steps: of the optimisers.
        learning_rate: peak; a linear warm-up before, a cosine to zero after.
        muon_rate: rate of the matrices that Muon has, as a multiple.
        slow: parts of parameter names whose rate is `slow_rate` times the peak; they are never Muon's.
        slow_rate: see `slow`.
        log_every: steps between records.
    """

    steps: int
    learning_rate: float
    muon_rate: float
    slow: tuple[str, ...] = ()
    slow_rate: float = 0.1
    log_every: int = 25

    def rate(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        warmup = max(1, round(_WARMUP * self.steps))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))


@dataclass(frozen=True)
class Fitted:
    """What fitting took.

    Attributes:
        losses: means over the last tenth of the steps, by name.
        wall_seconds, cpu_seconds: of the loop; the second over all threads.
    """

    losses: Mapping[str, float]
    wall_seconds: float
    cpu_seconds: float


def _optimizers(model: nn.Module, schedule: Schedule) -> Optimizers:
    own = matrices(model)
    muon: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    slow: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if any(part in name for part in schedule.slow):
            slow.append(parameter)
        else:
            (muon if id(parameter) in own else plain).append(parameter)
    adamw = [_group(plain, rate=1.0), _group(slow, rate=schedule.slow_rate)]
    return Optimizers(
        [group for group in adamw if group["params"]],
        [_group(muon, rate=schedule.muon_rate)] if muon else [],
        betas=_BETAS,
    )


def _group(parameters: list[nn.Parameter], *, rate: float) -> dict[str, Any]:
    return {"params": parameters, "weight_decay": 0.0, "rate": rate}


def fit(
    name: str,
    model: nn.Module,
    losses: Callable[[int], tuple[Tensor, Mapping[str, Tensor]]],
    schedule: Schedule,
    *,
    metrics: Path,
) -> Fitted:
    """Fits what has a gradient.

    Args:
        name: of the teacher, in progress and errors.
        model: changed in place.
        losses: step number -> the loss to go down, and its parts to record.
        schedule: how long and how fast.
        metrics: file that gets JSON lines {step, loss/<name>, loss/<name>_<part>, train/<name>_learning_rate, seconds}.

    Raises:
        TrainingError: the loss is not finite.
    """
    optimizers, parameters = _optimizers(model, schedule), [each for each in model.parameters() if each.requires_grad]
    watch = _Watch(name, schedule, metrics)
    model.train()
    for step in range(schedule.steps):
        loss, parts = losses(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
        optimizers.step(schedule.rate(step))
        watch.step({"loss": float(loss.detach()), **{key: float(value.detach()) for key, value in parts.items()}})
    model.eval()
    return watch.fitted()


class _Watch:
    def __init__(self, name: str, schedule: Schedule, metrics: Path) -> None:
        self._name, self._schedule, self._metrics = name, schedule, metrics
        self._wall, self._cpu, self._said = time.monotonic(), time.process_time(), 0.0
        self._history: list[dict[str, float]] = []
        metrics.write_text("")

    def step(self, losses: dict[str, float]) -> None:
        self._history.append(losses)
        done, steps, now = len(self._history), self._schedule.steps, time.monotonic()
        if not math.isfinite(losses["loss"]):
            raise TrainingError(
                f"teachers: the {self._name}'s loss is {losses['loss']} at step {done}; lower "
                f"teachers.{self._name}.learning_rate"
            )
        seconds = now - self._wall
        if done % self._schedule.log_every == 0 or done == steps:
            means = _means(self._history[-self._schedule.log_every :])
            row = {"step": done, f"loss/{self._name}": means.pop("loss")}
            row |= {f"loss/{self._name}_{part}": value for part, value in means.items()}
            row |= {f"train/{self._name}_learning_rate": self._schedule.rate(done - 1), "seconds": round(seconds, 1)}
            with self._metrics.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
        if now - self._said > _SILENCE or done == steps:
            self._said = now
            mean = _means(self._history[-self._schedule.log_every :])["loss"]
            left = seconds / done * (steps - done)
            print(f"teachers: {self._name} step {done}/{steps}, loss {mean:.3f}, {left:.0f} s left", flush=True)

    def fitted(self) -> Fitted:
        last = self._history[-max(1, len(self._history) // 10) :]
        return Fitted(_means(last), time.monotonic() - self._wall, time.process_time() - self._cpu)


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
