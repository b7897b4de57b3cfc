"""Which registered version is the champion: a candidate that passed the gate against the present one. Pure.

Both must have been measured on the same evaluation set (`digest` of the headline split): then their resamples are of
the same images, and the difference of the two models is taken resample by resample.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cloc.config.schema import EvaluationConfig
from cloc.errors import ConfigError
from cloc.evaluation.statistics import MIN_IMAGES, Estimate, difference
from cloc.evaluation.summary import FIGURES, dig, figure, signed

METRICS_FILE, ESTIMATES_FILE = "metrics.json", "estimates.safetensors"
_NOISE = 1e-9  # what rounding alone can make of equal figures


@dataclass(frozen=True, eq=False)
class Measured:
    """A model's part in an evaluation.

    Attributes:
        metrics: content of `metrics.json`.
        model: name of its row there.
        samples: figures in each resample, by the names of `sample_name`; empty where none were kept.
    """

    metrics: Mapping[str, Any]
    model: str
    samples: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)

    @classmethod
    def of(cls, files: Mapping[str, bytes], *, weights: str) -> "Measured | None":
        """The part of the model with these weights (sha256) in an evaluation's files; None where it has none.

        Args:
            files: `METRICS_FILE`, and `ESTIMATES_FILE` where it was kept.
            weights: of the model.
        """
        metrics = json.loads(files[METRICS_FILE])
        names = [name for name, model in metrics["models"].items() if model["weights_sha256"] == weights]
        if not names:
            return None
        samples = {}
        if ESTIMATES_FILE in files:
            from safetensors.numpy import load

            samples = load(files[ESTIMATES_FILE])
        return cls(metrics, names[0], samples)

    @property
    def split(self) -> str:
        """The headline split."""
        return str(self.metrics["headline"]["split"])

    @property
    def digest(self) -> str:
        """Of the evaluation set that the headline split is."""
        return str(self.metrics["splits"][self.split]["digest"])


@dataclass(frozen=True)
class Decision:
    """Whether the candidate becomes champion, and why, in one sentence."""

    promoted: bool
    reason: str


def sample_name(split: str, path: str, model: str, reader: str = "") -> str:
    """Name of a figure's resamples in `estimates.safetensors`."""
    return f"{split}/{path}|{model}|{reader}"


def estimate(measured: Measured, path: str, *, split: str = "") -> Estimate | None:
    """A figure of a model on a split (the headline's unless named), of its best reader; without resamples (of length 0)
    where none were kept, None where the model has no such figure."""
    split = split or measured.split
    found = figure(measured.metrics, split=split, model=measured.model, path=path)
    if found is None:
        return None
    samples = measured.samples.get(sample_name(split, path, measured.model, found.reader), np.zeros(0))
    protocol, _, rest = path.partition("/")
    scores = measured.metrics["splits"][split]
    rows = [row for row in scores["rows"] if (row["model"], row["reader"]) == (measured.model, found.reader)]
    block = rows[0][protocol] if rows else scores[protocol][measured.model]
    block = dig(block, rest.rpartition("/")[0]) if "/" in rest else block
    items = int(block["n"])
    return Estimate(found.value, np.asarray(samples, dtype=np.float64), items, int(block.get("images", items)))


def decide(candidate: Measured, champion: Measured, config: EvaluationConfig) -> Decision:
    """Whether a candidate beats the champion, both measured on the same evaluation set.

    Raises:
        ConfigError: `evaluation.promote_figure` is no figure of the candidate.
    """
    path = config.promote_figure
    own, other = estimate(candidate, path), estimate(champion, path)
    if own is None or path.endswith("rank"):
        raise ConfigError(
            f"evaluation.promote_figure: {path!r} is no share that {candidate.model} has on {candidate.split}; take "
            f"one of {', '.join(_figures(candidate))}"
        )
    if other is None:
        return Decision(False, f"the champion has no figure {path} on this evaluation set")
    label = FIGURES.get(path, path)
    figures = f"{label} on {candidate.split} is {100 * own.value:.1f}, the champion's {100 * other.value:.1f}"
    if config.promote_by == "value":
        return Decision(own.value - other.value > config.promote_margin, f"{figures}{_asked(config)}")
    if not len(own.samples_S) or len(own.samples_S) != len(other.samples_S):
        together = "evaluate both together"
        return Decision(False, f"{figures}, but no interval tells them apart: resamples were not kept; {together}")
    if min(own.images, other.images) < MIN_IMAGES:
        return Decision(False, f"{figures}, on too few images ({own.images}) to tell them apart")
    found = difference(own, other)
    low, high = found.interval.low, found.interval.high
    told = f"{figures}: {signed(found.value)} points, 95 % interval {signed(low)} to {signed(high)}"
    return Decision(low - config.promote_margin > _NOISE, f"{told}{_asked(config)}")


def _asked(config: EvaluationConfig) -> str:
    what = "the interval must lie above" if config.promote_by == "interval" else "the difference must be above"
    return f" ({what} {100 * config.promote_margin:g})"


def _figures(measured: Measured) -> list[str]:
    """The headline's figures that a model has."""
    return [
        path
        for path in FIGURES
        if figure(measured.metrics, split=measured.split, model=measured.model, path=path) is not None
    ]
