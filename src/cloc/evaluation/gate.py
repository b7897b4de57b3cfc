"""The gate before registration: is the candidate worth its name? Pure, by the rules of `EvaluationConfig`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloc.config.schema import EvaluationConfig
from cloc.evaluation.summary import READERS, best_row


@dataclass(frozen=True)
class Verdict:
    """Whether the candidate passed, and why: one reason a rule, those that failed first."""

    passed: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Finding:
    passed: bool
    reason: str


def judge(metrics: Mapping[str, Any], config: EvaluationConfig, *, candidate: str = "") -> Verdict:
    """Judges a model by the headline split.

    Args:
        metrics: content of `metrics.json`.
        config: section `evaluation`.
        candidate: name of the model to judge; empty takes the comparison's own candidate.
    """
    candidate = candidate or metrics["headline"]["candidate"]
    if not candidate:
        return Verdict(False, ("there is no CLOC model among those evaluated",))
    if not metrics["headline"]["baselines"]:
        # What asks for nothing needs nothing to be held against.
        asks = config.min_region_gain > 0 or config.max_image_loss < 1
        return Verdict(not asks, ("there is no plain CLIP among the models evaluated to hold the candidate against",))
    findings = [_region_gain(metrics, config, candidate), _image_loss(metrics, config, candidate)]
    findings.sort(key=lambda finding: finding.passed)
    return Verdict(all(finding.passed for finding in findings), tuple(finding.reason for finding in findings))


def _region_gain(metrics: Mapping[str, Any], config: EvaluationConfig, candidate: str) -> _Finding:
    split = metrics["headline"]["split"]
    own = best_row(metrics, split=split, model=candidate)
    others = [best_row(metrics, split=split, model=name) for name in metrics["headline"]["baselines"]]
    best = max((row for row in others if row), key=lambda row: row["region"]["mAcc"], default=None)
    if own is None or best is None:
        return _Finding(False, f"min_region_gain: no region figures on {split}")
    a, b = own["region"]["mAcc"], best["region"]["mAcc"]
    # Compared as a product: nothing is divided by a baseline of 0. A candidate at 0 has gained nothing; that is well
    # where nothing is asked for.
    passed = (a > 0 or config.min_region_gain == 0) and a >= config.min_region_gain * b
    ratio = f"{a / b:.2f} times" if b else "against"
    return _Finding(
        passed,
        f"min_region_gain: region mAcc on {split} is {100 * a:.1f} ({candidate}, {READERS[own['reader']]}), {ratio} "
        f"the {100 * b:.1f} of {best['model']} ({READERS[best['reader']]}); asked for: at least "
        f"{config.min_region_gain:g} times",
    )


def _image_loss(metrics: Mapping[str, Any], config: EvaluationConfig, candidate: str) -> _Finding:
    split = metrics["headline"]["split"]
    if candidate not in metrics["splits"][split]["retrieval"]:
        return _Finding(
            config.max_image_loss == 1,
            f"max_image_loss: {split} has no captions, so that image-text retrieval is not known; evaluate on a split "
            "that has some, or set evaluation.max_image_loss=1 to switch this rule off",
        )
    steps = metrics["models"][candidate]["steps"]
    equal = [name for name in metrics["headline"]["baselines"] if metrics["models"][name]["steps"] == steps]
    if steps is None or not equal:
        amount = "as many steps as" if steps is None else f"the {steps:,} steps of"
        return _Finding(
            False, f"max_image_loss: no plain CLIP is known to be trained for {amount} {candidate}; evaluate one"
        )
    own = _mean_recall(metrics, split, candidate)
    other = max(equal, key=lambda name: _mean_recall(metrics, split, name))
    theirs = _mean_recall(metrics, split, other)
    return _Finding(
        own >= theirs - config.max_image_loss,
        f"max_image_loss: mean image-text R@1 on {split} is {100 * own:.1f} ({candidate}) against {100 * theirs:.1f} "
        f"({other}, equal steps); allowed: {100 * config.max_image_loss:g} points below",
    )


def _mean_recall(metrics: Mapping[str, Any], split: str, model: str) -> float:
    scores = metrics["splits"][split]["retrieval"][model]
    return float(scores["i2t"]["R@1"] + scores["t2i"]["R@1"]) / 2
