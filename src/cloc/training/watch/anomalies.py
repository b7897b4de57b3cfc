"""Losses and gradients that went wrong: not finite, or far above those before; and which samples were in the batch."""

import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cloc.config.schema import TrainConfig
from cloc.data.storage import open_storage
from cloc.errors import TrainingError

BAD_BATCHES = "bad_batches.jsonl"
_WINDOW = 128  # losses of applied steps that a loss is compared with
_LEAST = 32  # of them: fewer say little about what is usual
_LEAST_DEVIATION = 0.01  # of the mean: a loss that hardly moves would make a spike of every flutter
_NAMED = 3  # keys that a message names


class Verdict(StrEnum):
    """What to do with a step."""

    APPLY = "apply"
    SKIP = "skip"
    STOP = "stop"


@dataclass(frozen=True)
class Judgement:
    """Attributes:
    verdict: what to do with the step.
    reason: why, where it is not applied.
    advice: what a user can do, where training stops.
    """

    verdict: Verdict
    reason: str = ""
    advice: str = ""


class Judge:
    """Judges each step from its loss and the norm of its gradient, which are equal on all ranks, and so is the verdict.

    A spike is a loss above the mean of the last 128 by more than `train.spike_deviations` of their standard deviations;
    the first 32 steps have none. Only steps that were applied count: neither a spike nor a NaN changes what is usual.

    Args:
        train: section `train`.
        rate: the setting of the learning rate, for advice.
    """

    def __init__(self, train: TrainConfig, *, rate: str = "train.learning_rate") -> None:
        self._train, self._rate = train, rate
        self._losses: deque[float] = deque(maxlen=_WINDOW)
        self._in_row = 0

    def judge(self, *, loss: float, gradient_norm: float) -> Judgement:
        """What to do with the step of that loss (of the global batch) and gradient norm (before clipping)."""
        judgement = self._not_finite(loss, gradient_norm) or self._spike(loss) or Judgement(Verdict.APPLY)
        if judgement.verdict is Verdict.APPLY:
            self._losses.append(loss)
            self._in_row = 0
            return judgement
        self._in_row += 1
        if judgement.verdict is Verdict.SKIP and self._in_row > self._train.max_skipped:
            return Judgement(
                Verdict.STOP,
                f"{judgement.reason}, after {self._train.max_skipped} skipped batches in a row (train.max_skipped)",
                f"go on from an earlier checkpoint with a lower {self._rate}: the weights themselves are bad",
            )
        return judgement

    def _not_finite(self, loss: float, gradient_norm: float) -> Judgement | None:
        if math.isfinite(loss) and math.isfinite(gradient_norm):
            return None
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the norm of the gradient is {gradient_norm}"
        return Judgement(
            Verdict(self._train.on_nonfinite),
            what,
            f"look at these samples, lower {self._rate}, or set train.on_nonfinite=skip",
        )

    def _spike(self, loss: float) -> Judgement | None:
        if self._train.on_spike == "ignore" or len(self._losses) < _LEAST:
            return None
        mean = math.fsum(self._losses) / len(self._losses)
        deviation = math.sqrt(math.fsum((each - mean) ** 2 for each in self._losses) / len(self._losses))
        limit = mean + self._train.spike_deviations * max(deviation, _LEAST_DEVIATION * abs(mean))
        if loss <= limit:
            return None
        return Judgement(
            Verdict(self._train.on_spike),
            f"the loss is {loss:.4g}, above the {limit:.4g} that {self._train.spike_deviations:g} deviations of the "
            f"last {len(self._losses)} losses allow (mean {mean:.4g})",
            f"look at these samples, lower {self._rate}, or set train.on_spike=skip",
        )

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on needs; JSON values, exact."""
        return {"losses": list(self._losses), "in_row": self._in_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave; an empty state is that of the start."""
        self._losses = deque(state.get("losses", ()), maxlen=_WINDOW)
        self._in_row = state.get("in_row", 0)


@dataclass(frozen=True)
class BadBatch:
    """A batch that was not trained on: a line of bad_batches.jsonl.

    Attributes:
        step: counted from 1, as in the metrics.
        verdict: "skip" or "stop".
        reason: why.
        loss, gradient_norm: of the global batch.
        keys: of its samples, rank after rank.
    """

    step: int
    verdict: Verdict
    reason: str
    loss: float
    gradient_norm: float
    keys: Sequence[str]

    def leave_out(self, output: str, *, advice: str, tell: bool) -> None:
        """Writes it down and says so; or stops, as the verdict is.

        Args:
            output: folder or s3:// prefix of the run.
            advice: what a user can do, where training stops.
            tell: whether this rank writes and speaks: the first one.

        Raises:
            TrainingError: the verdict is to stop.
        """
        if tell:
            self.write(output)
        if self.verdict is Verdict.STOP:
            raise TrainingError(f"{self.message(output)}; {advice}")
        if tell:
            print(f"skipped: {self.message(output)}", flush=True)

    def message(self, output: str) -> str:
        """What happened, to which samples, and where the rest of them stands."""
        named, more = ", ".join(self.keys[:_NAMED]), len(self.keys) - _NAMED
        rest = f" and {more} more" if more > 0 else ""
        return f"step {self.step}: {self.reason}; samples {named}{rest} ({output.rstrip('/')}/{BAD_BATCHES})"

    def write(self, output: str) -> None:
        """Adds it to the file in that folder or s3:// prefix; what stands there of this step or later ones was of an
        attempt that went no further, and is replaced."""
        storage = open_storage(output)
        lines = storage.read_bytes(BAD_BATCHES).decode().splitlines() if storage.exists(BAD_BATCHES) else []
        kept = [line for line in lines if json.loads(line)["step"] < self.step]
        # NaN is not JSON: numbers that are not finite are written as text.
        numbers = {"loss": self.loss, "gradient_norm": self.gradient_norm}
        written = {name: value if math.isfinite(value) else str(value) for name, value in numbers.items()}
        own = {"step": self.step, "verdict": self.verdict, "reason": self.reason, **written, "keys": list(self.keys)}
        storage.write_bytes(BAD_BATCHES, "".join(f"{line}\n" for line in [*kept, json.dumps(own)]).encode())
