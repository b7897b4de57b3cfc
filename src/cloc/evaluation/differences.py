"""Paired differences: the candidate's best reader against every other model's best reader, figure by figure.

Which reader is best is picked by the figure itself, on the images that are reported, for all models alike.
"""

from collections.abc import Mapping
from typing import Any

from cloc.evaluation.statistics import Estimate, difference

# (figure path, model, reader); the reader is "" for figures that have none.
Key = tuple[str, str, str]
# Figures that describe and are neither good nor bad when high: parts of the coherence gap.
_DESCRIPTIVE = ("inside", "outside")


def higher_is_better(figure: str) -> bool:
    """Whether more is better: all figures are shares or cosines, except ranks ("attributes/<level>/mean_rank")."""
    return not figure.endswith("rank")


def differences(estimates: Mapping[Key, Estimate], *, candidate: str) -> list[dict[str, Any]]:
    """The differences of a split as they stand in `metrics.json`, in the order of figures and models.

    Figures that the candidate or the other model lacks, that are of no items, or that only describe (the mean cosine
    inside and outside of boxes, whose gap is compared) are left out.

    Args:
        estimates: all of the same draws of the same images.
        candidate: model that the others are held against; it is `a`.
    """
    best: dict[str, dict[str, tuple[str, Estimate]]] = {}
    for (figure, model, reader), estimate in estimates.items():
        if not estimate.n or figure.rsplit("/", 1)[-1] in _DESCRIPTIVE:
            continue
        models = best.setdefault(figure, {})
        if model not in models or _above(estimate, models[model][1], figure=figure):
            models[model] = (reader, estimate)
    found: list[dict[str, Any]] = []
    for figure, models in best.items():
        if candidate not in models:
            continue
        reader, own = models[candidate]
        for model, (other_reader, other) in models.items():
            if model == candidate:
                continue
            result = difference(own, other, higher_is_better=higher_is_better(figure))
            found.append(
                {
                    "figure": figure,
                    "a": {"model": candidate, "reader": reader},
                    "b": {"model": model, "reader": other_reader},
                    "value": result.value,
                    "interval": result.interval.to_json(),
                    "better": result.better,
                }
            )
    return found


def _above(estimate: Estimate, other: Estimate, *, figure: str) -> bool:
    if higher_is_better(figure):
        return estimate.value > other.value
    return estimate.value < other.value
