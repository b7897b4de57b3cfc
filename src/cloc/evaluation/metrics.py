"""The figures of a comparison as JSON (`metrics.json`), and the same, flat, for experiment tracking.

    splits     by name: counts, `rows` (one a model and reader), `retrieval` and `grounding` by model, `leaked` (images
               that occur in the training split; null where nobody knows)
    headline   the split, the candidate and the baselines that the summary and the gate look at
    models     by name: how each was trained, and the hash of its weights
    protocols  the version of each protocol

All figures are shares in [0, 1]; `interval` holds 95 % intervals `[low, high]` over images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cloc.evaluation import grounding, region_recognition, retrieval, statistics
from cloc.evaluation.features import Features, Items
from cloc.evaluation.models import EvaluatedModel
from cloc.evaluation.ranking import KS
from cloc.evaluation.truth import Split

METRICS_FILE = "metrics.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class SplitResult:
    """What the protocols found on a split: the figures, and what the report shows of single items.

    Attributes:
        items: what the rows of the arrays are.
        scores: the split's part of `metrics.json`.
        recognitions: by (model, reader).
        retrievals: by model; images are numbered as in `captioned`.
        captioned: number of each captioned image in `items`.
        boxes: predicted box of each phrase, by model.
        iou: of each phrase, by model.
    """

    items: Items
    scores: dict[str, Any]
    recognitions: dict[tuple[str, str], region_recognition.Recognition]
    retrievals: dict[str, retrieval.RetrievalScores]
    captioned: np.ndarray[Any, np.dtype[np.int64]]
    boxes: dict[str, np.ndarray[Any, np.dtype[np.floating]]]
    iou: dict[str, np.ndarray[Any, np.dtype[np.floating]]]


def score_split(split: Split, items: Items, features: Mapping[str, Features]) -> SplitResult:
    """Applies the protocols to the features of all models."""
    captioned = np.unique(np.asarray(items.caption_image, dtype=np.int64))
    result = SplitResult(items, _counts(split, items), {}, {}, captioned, {}, {})
    draws = statistics.draws(len(items.keys))
    for model, found in features.items():
        _add_regions(result, split, model, found, draws)
        _add_retrieval(result, model, found)
        if found.boxes is not None:
            _add_grounding(result, model, found, draws)
    return result


def _counts(split: Split, items: Items) -> dict[str, Any]:
    return {
        "data": split.dataset.images.url,
        "digest": split.dataset.digest,
        "images": len(items.keys),
        "captions": len(items.caption_text),
        "distinct_captions": len(items.captions),
        "regions": len(items.labels),
        "classes": len(split.classes),
        "classes_occurring": len(set(items.labels)),
        "phrases": len(items.phrases),
        "ambiguous_phrases": items.ambiguous,
        "bad_boxes": split.bad_boxes,
        "undecodable": [{"key": key, "reason": reason} for key, reason in items.refused],
        "leaked": None,
        "rows": [],
        "retrieval": {},
        "grounding": {},
    }


def _add_regions(result: SplitResult, split: Split, model: str, found: Features, draws: Any) -> None:
    labels, images = np.asarray(result.items.labels), np.asarray(result.items.label_images)
    for reader, embeds_RE in found.regions.items():
        recognition = region_recognition.recognize(embeds_RE, found.classes_CE, labels)
        scores = region_recognition.score(recognition.credit, labels, images, classes=split.classes, draws_SN=draws)
        result.recognitions[model, reader] = recognition
        region = {
            **statistics.scores(scores.figures),
            "classes": scores.classes,
            "per_class": {name: {"accuracy": acc, "n": n} for name, (acc, n) in scores.per_class.items()},
        }
        result.scores["rows"].append({"model": model, "reader": reader, "region": region})


def _add_retrieval(result: SplitResult, model: str, found: Features) -> None:
    image_of_T = np.searchsorted(result.captioned, np.asarray(result.items.caption_image))
    scores = retrieval.score(
        found.images_NE[result.captioned],
        found.texts_TE,
        image_of_T,
        draws_SN=statistics.draws(len(result.captioned)),
    )
    result.retrievals[model] = scores
    result.scores["retrieval"][model] = {
        "i2t": _direction(scores.image_to_text),
        "t2i": _direction(scores.text_to_image),
    }


def _direction(direction: retrieval.Direction) -> dict[str, Any]:
    return {
        **statistics.scores(direction.figures),
        "queries": direction.queries,
        "candidates": direction.candidates,
    }


def _add_grounding(result: SplitResult, model: str, found: Features, draws: Any) -> None:
    items = result.items
    assert found.boxes is not None
    labelled = np.asarray(items.phrase_boxes, dtype=np.float64).reshape(-1, 4)
    images = np.asarray(items.phrase_images, dtype=np.int64)
    scores = grounding.score(found.boxes, labelled, images, draws_SN=draws)
    result.boxes[model], result.iou[model] = found.boxes, scores.iou
    result.scores["grounding"][model] = statistics.scores(scores.figures)


def assemble(models: Sequence[EvaluatedModel], splits: Mapping[str, SplitResult]) -> dict[str, Any]:
    """The whole of `metrics.json`; the first split is the headline one, the first "cloc" model the candidate."""
    candidates = [model.name for model in models if model.training["objective"] == "cloc"]
    return {
        "schema_version": SCHEMA_VERSION,
        "protocols": {
            "region_recognition": region_recognition.VERSION,
            "retrieval": retrieval.VERSION,
            "grounding": grounding.VERSION,
        },
        "bootstrap": {"resamples": statistics.RESAMPLES, "seed": statistics.SEED, "level": statistics.LEVEL},
        "headline": {
            "split": next(iter(splits)),
            "candidate": candidates[0] if candidates else "",
            "baselines": [model.name for model in models if model.training["objective"] == "clip"],
        },
        "models": {
            model.name: {
                **model.training,
                "slug": model.slug,
                "folder": model.folder,
                "weights_sha256": model.digest,
                "parameters": sum(parameter.numel() for parameter in model.model.parameters()),
                "readers": list(model.readers),
            }
            for model in models
        },
        "splits": {name: result.scores for name, result in splits.items()},
    }


def flatten(metrics: Mapping[str, Any]) -> dict[str, float]:
    """`metrics.json` as flat names for tracking, which allows neither "@" nor parentheses.

    "eval/<split>/region/<model>/<reader>/mAcc", "eval/<split>/retrieval/<model>/i2t_R1",
    "eval/<split>/grounding/<model>/acc_0.5", "data/<split>/leaked_images"; "data/leaked_images" is the headline's.
    """
    flat: dict[str, float] = {}
    for name, split in metrics["splits"].items():
        leaked = split.get("leaked")  # not in what earlier releases wrote
        if leaked is not None:
            flat[f"data/{name}/leaked_images"] = float(leaked["exact"] + leaked["near"])
            if name == metrics["headline"]["split"]:
                flat["data/leaked_images"] = flat[f"data/{name}/leaked_images"]
        for row in split["rows"]:
            prefix = f"eval/{name}/region/{metrics['models'][row['model']]['slug']}/{row['reader']}"
            flat[f"{prefix}/mAcc"] = row["region"]["mAcc"]
            flat[f"{prefix}/top1"] = row["region"]["top1"]
        for model, ways in split["retrieval"].items():
            for way, direction in ways.items():
                for k in KS:
                    key = f"eval/{name}/retrieval/{metrics['models'][model]['slug']}/{way}_R{k}"
                    flat[key] = direction[f"R@{k}"]
        for model, scores in split["grounding"].items():
            prefix = f"eval/{name}/grounding/{metrics['models'][model]['slug']}"
            flat[f"{prefix}/acc_0.5"] = scores["acc@0.5"]
            flat[f"{prefix}/mean_iou"] = scores["mean_iou"]
    return flat
