"""The figures of a comparison as JSON (`metrics.json`), and the same, flat, for experiment tracking.

    splits          by name: `digest` (of the evaluation set: equal digests have figures that can be compared), counts,
                    `rows` (one a model and reader: region, region_retrieval, attributes, probe), `retrieval`,
                    `grounding` and `coherence` by model, `differences` of the candidate and every other model, `leaked`
                    (images that occur in the training split; null where nobody knows). What a split has no truth for
                    is absent.
    classification  by set: its digest, figures by model with plain names, with templates, by a linear probe, and
                    `differences` as in a split
    headline        the split, the candidate and the baselines that the summary and the gate look at
    models          by name: how each was trained (null where that is not known), and the hash of its weights
    protocols       the version of each protocol

Shares are in [0, 1]; `n` counts items, `images` those that hold them, `interval` holds 95 % intervals `[low, high]`
over images. Beside it lies `estimates.safetensors`: every figure of a split in every resample of its images, named
"<split>/<figure>|<model>|<reader>", so that two evaluations of equal digest can be compared as pairs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from safetensors.numpy import save

from cloc.evaluation import (
    attributes,
    classification,
    coherence,
    grounding,
    linear_probe,
    region_recognition,
    region_retrieval,
    retrieval,
    statistics,
    summary,
)
from cloc.evaluation.differences import Key
from cloc.evaluation.features import Items
from cloc.evaluation.models import EvaluatedModel
from cloc.evaluation.promotion import ESTIMATES_FILE, METRICS_FILE, sample_name
from cloc.evaluation.statistics import Estimate
from cloc.tracking import eval_name

__all__ = [
    "ESTIMATES_FILE",
    "METRICS_FILE",
    "PROTOCOLS",
    "SplitResult",
    "about_model",
    "assemble",
    "flatten",
    "flatten_model",
    "headline_names",
    "pack_estimates",
]

SCHEMA_VERSION = 2
PROTOCOLS = {
    module.NAME: module.VERSION
    for module in (
        region_recognition,
        region_retrieval,
        attributes,
        linear_probe,
        retrieval,
        grounding,
        coherence,
        classification,
    )
}


@dataclass(frozen=True)
class SplitResult:
    """What the protocols found on a split: the figures, and what the report shows of single items.

    Attributes:
        items: what the rows of the arrays are.
        scores: the split's part of `metrics.json`.
        recognitions: by (model, reader).
        retrievals: by model; images are numbered as in `captioned`.
        region_retrievals: by (model, reader); regions are those of `items.named`, texts the distinct ones of these.
        captioned: number of each captioned image in `items`.
        boxes: predicted box of each phrase, by model.
        iou: of each phrase, by model.
        estimates: every figure, by its path, model and reader ("" where nothing reads regions).
    """

    items: Items
    scores: dict[str, Any]
    recognitions: dict[tuple[str, str], region_recognition.Recognition]
    retrievals: dict[str, retrieval.RetrievalScores]
    captioned: np.ndarray[Any, np.dtype[np.int64]]
    boxes: dict[str, np.ndarray[Any, np.dtype[np.floating]]]
    iou: dict[str, np.ndarray[Any, np.dtype[np.floating]]]
    estimates: dict[Key, Estimate] = field(default_factory=dict)
    region_retrievals: dict[tuple[str, str], region_retrieval.RegionRetrievalScores] = field(default_factory=dict)


def candidate_of(models: Sequence[EvaluatedModel]) -> str:
    """The model that others are held against: the first that is a CLOC; "" where there is none."""
    return next((model.name for model in models if model.training["objective"] == "cloc"), "")


def assemble(
    models: Sequence[EvaluatedModel], splits: Mapping[str, SplitResult], classifications: Mapping[str, Any]
) -> dict[str, Any]:
    """The whole of `metrics.json`; the first split is the headline one."""
    return {
        "schema_version": SCHEMA_VERSION,
        "protocols": PROTOCOLS,
        "bootstrap": {"resamples": statistics.RESAMPLES, "seed": statistics.SEED, "level": statistics.LEVEL},
        "headline": {
            "split": next(iter(splits)),
            "candidate": candidate_of(models),
            "baselines": [model.name for model in models if model.training["objective"] == "clip"],
        },
        "models": {
            model.name: {
                **model.training,
                "slug": model.slug,
                "folder": model.folder,
                "weights_sha256": model.digest,
                "parameters": sum(parameter.numel() for parameter in model.model.parameters()),
                "image_size": model.size,
                "readers": list(model.readers),
            }
            for model in models
        },
        "splits": {name: result.scores for name, result in splits.items()},
        "classification": dict(classifications),
    }


def pack_estimates(splits: Mapping[str, SplitResult]) -> bytes:
    """The content of `estimates.safetensors`."""
    return save(
        {
            sample_name(name, path, model, reader): estimate.samples_S.astype(np.float64)
            for name, result in splits.items()
            for (path, model, reader), estimate in result.estimates.items()
        }
    )


def flatten(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What `metrics.json` says of the data: "data/<split>/leaked_images", and the headline's "data/leaked_images"."""
    flat: dict[str, float] = {}
    for name, split in metrics["splits"].items():
        leaked = split.get("leaked")  # not in what earlier releases wrote
        if leaked is not None:
            flat[f"data/{name}/leaked_images"] = float(leaked["exact"] + leaked["near"])
            if name == metrics["headline"]["split"]:
                flat["data/leaked_images"] = flat[f"data/{name}/leaked_images"]
    return flat


def flatten_model(metrics: Mapping[str, Any], model: str) -> dict[str, float]:
    """A model's figures in `metrics.json` by the names of `cloc.tracking.names`.

    "eval/region/test/mAcc" (of what reads regions, by the reader that is best at this very figure, as in the report's
    table) and "eval/region/test/prompter/mAcc" (by each reader), "eval/retrieval/test/i2t_R1",
    "eval/grounding/test/acc_0.5", "eval/classification/<set>/plain_top1".
    """
    flat: dict[str, float] = {}
    for name, split in metrics["splits"].items():
        for row in (row for row in split["rows"] if row["model"] == model):
            for protocol, scores in row.items():
                for figure, value in _figures(scores) if isinstance(scores, Mapping) else ():
                    best, choose = eval_name(protocol, name, figure), min if figure.endswith("rank") else max
                    flat[best] = choose(value, flat.get(best, value))
                    flat[eval_name(protocol, name, figure, reader=row["reader"])] = value
        for protocol in ("retrieval", "grounding", "coherence"):
            for figure, value in _figures(split.get(protocol, {}).get(model, {})):
                flat[eval_name(protocol, name, figure)] = value
    for name, found in metrics.get("classification", {}).items():
        for figure, value in _figures(found["models"].get(model, {})):
            flat[eval_name("classification", name, figure)] = value
    return flat


def headline_names(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the figures of the headline split that the report's table shows, by the names of `flatten_model`."""
    found = []
    for path in summary.FIGURES:
        protocol, _, figure = path.partition("/")
        found.append(eval_name(protocol, metrics["headline"]["split"], figure.replace("/", "_")))
    return tuple(found)


def about_model(metrics: Mapping[str, Any], model: str) -> dict[str, Any]:
    """How a model of `metrics.json` came about, flat: what tells two rows apart, and finds the training's run."""
    body = {name: value for name, value in metrics["models"][model].items() if name != "slug" and value is not None}
    return {name: ", ".join(value) if isinstance(value, list) else value for name, value in body.items()}


def _figures(scores: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every figure of a block with intervals, and of the blocks in it: "i2t_R@1", "small_mAcc"."""
    for figure in scores.get("interval", {}):
        yield f"{prefix}{figure}", float(scores[figure])
    for key, inner in scores.items():
        if key != "interval" and isinstance(inner, Mapping):
            yield from _figures(inner, "" if key == "by_size" else f"{prefix}{key}_")
