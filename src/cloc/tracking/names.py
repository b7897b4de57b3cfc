"""What metrics are called, by every stage: in MLflow, in `metrics.jsonl`, `stage_result.json` and KFP's tables alike.

    eval/<protocol>/<data set>[/<reader>]/<figure>   how good a model is: eval/region/test/mAcc
    loss/<name>      losses
    train/<figure>   what else training does: learning_rate, gradient_norm, ...
    speed/<figure>   rates, times, shares of time: images_per_second, wall_seconds, ...
    system/<figure>  the machine: memory_gib; MLflow's sampler writes here, too
    labels/<figure>  captions and regions: regions_per_image, labelled_f1, ...
    data/<figure>    images: images, quarantined_share, leaked_images, ...
    checks/<figure>  verdicts of validation
    gate/<figure>    verdicts of the gate and the registry
    count/<name>     what went through a stage
    samples          images that training has seen: the second axis of its curves

A figure has one family and one name, whichever stage measures it, so that runs stand in one column and one chart. What
was measured on comes before the figure; who was measured is never part of a name: every model has a run of its own.
Curves over shards begin with `shards/`, curves against samples with `by_samples/`.
"""

import re

FAMILIES = ("eval", "loss", "train", "speed", "system", "labels", "data", "checks", "gate", "count")
SAMPLES, EVAL = "samples", "eval/"
_EVAL_PARTS = (4, 5)
_PART = re.compile(r"[\w.\- ]+")
_FORBIDDEN = re.compile(r"[^\w.\- ]+")


def eval_name(protocol: str, data_set: str, figure: str, *, reader: str = "") -> str:
    """Name of a figure of a model: ("grounding", "test", "acc@0.5") -> "eval/grounding/test/acc_0.5"."""
    parts = (protocol, data_set, *([reader] if reader else []), plain(figure))
    return "/".join(["eval", *(_FORBIDDEN.sub("_", part) for part in parts)])


def plain(figure: str) -> str:
    """A figure's own name in the characters that MLflow takes: "i2t/R@1" -> "i2t_R1", "acc@0.5" -> "acc_0.5"."""
    return _FORBIDDEN.sub("_", re.sub(r"(?<![A-Za-z])R@", "R", figure))


def data_set_of(name: str) -> str:
    """The data set in a name that `eval_name` made."""
    return name.split("/")[2]


def problem(name: str) -> str:
    """What is wrong with a metric's name; "" where nothing is."""
    parts = name.split("/")
    if name == SAMPLES:
        return ""
    if not all(_PART.fullmatch(part) for part in parts):
        return f"{name!r} has characters that MLflow does not take"
    if parts[0] not in FAMILIES:
        return f"{name!r} begins with none of {', '.join(FAMILIES)}"
    if parts[0] == "eval" and len(parts) not in _EVAL_PARTS:
        return f"{name!r} is not eval/<protocol>/<data set>/<figure>"
    return "" if len(parts) > 1 else f"{name!r} names a family alone"
