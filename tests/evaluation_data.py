"""Figures of an evaluation (`metrics.json`, version 2) and its single answers, made by hand: for report and summary."""

import copy
from typing import Any

import numpy as np

from cloc.data.dataset import Dataset
from cloc.evaluation import region_recognition, region_retrieval, retrieval, statistics
from cloc.evaluation.features import Items
from cloc.evaluation.metrics import SplitResult
from cloc.evaluation.summary import slug
from cloc.evaluation.truth import Split, open_splits

STEPS, COMPUTE, PUBLIC, CLOC = "CLIP (equal steps)", "CLIP (equal compute)", "OpenAI B/32", "CLOC"
REGION = {
    STEPS: {"crop": 0.05, "roi_align": 0.12, "masked": 0.11},
    COMPUTE: {"crop": 0.19, "roi_align": 0.10, "masked": 0.12},
    PUBLIC: {"crop": 0.42, "roi_align": 0.20, "masked": 0.31},
    CLOC: {"crop": 0.30, "roi_align": 0.33, "masked": 0.28, "prompter": 0.70},
}
RECALL = {STEPS: 0.15, COMPUTE: 0.33, PUBLIC: 0.40, CLOC: 0.25}
CLASSES = ("apple", "ball", "box", "key")


def block(n: int = 100, **figures: float) -> dict[str, Any]:
    """Scores with intervals of three points around each figure."""
    interval = {name: [max(0.0, value - 0.03), min(1.0, value + 0.03)] for name, value in figures.items()}
    return {**figures, "n": n, "interval": interval}


def recalls(value: float) -> dict[str, Any]:
    """A direction of retrieval."""
    found = block(**{"R@1": value, "R@5": min(1.0, 2 * value), "R@10": min(1.0, 2.5 * value)})
    return {**found, "queries": 100, "candidates": 500}


def row(model: str, reader: str, macc: float) -> dict[str, Any]:
    """A row with all protocols that read regions."""
    level = {"3_attributes": 0.4, "2_attributes": 0.3, "1_attributes": 0.1}
    return {
        "model": model,
        "reader": reader,
        "region": {
            **block(mAcc=macc, top1=macc / 2),
            "classes": 4,
            "per_class": {
                name: {"accuracy": min(1.0, macc * (1.4 - 0.2 * place)), "n": 40 - 9 * place}
                for place, name in enumerate(CLASSES)
            },
            "by_size": {
                size: block(n=30, mAcc=macc * share, top1=macc * share / 2)
                for size, share in (("small", 0.5), ("medium", 0.9), ("large", 1.2))
            },
        },
        "region_retrieval": {"r2t": recalls(macc / 3), "t2r": recalls(macc / 4)},
        "attributes": {
            name: {**block(accuracy=min(1.0, base + macc / 2)), "negatives": 5.0, "chance": 1 / 6}
            for name, base in level.items()
        },
        "probe": block(top1=min(1.0, macc + 0.1), mAcc=macc),
    }


def _difference(figure: str, value: float, other: str, reader: str = "", own: str = "") -> dict[str, Any]:
    return {
        "figure": figure,
        "a": {"model": CLOC, "reader": own},
        "b": {"model": other, "reader": reader},
        "value": value,
        "interval": [value - 0.04, value + 0.04],
        "better": "a" if value > 0.04 else "b" if value < -0.04 else "",
    }


def differences() -> list[dict[str, Any]]:
    """CLOC less each other model."""
    found = []
    for other in (STEPS, COMPUTE, PUBLIC):
        reader = max(REGION[other], key=lambda name: REGION[other][name])
        gap = REGION[CLOC]["prompter"] - REGION[other][reader]
        for figure, share in (("region/mAcc", 1), ("region/top1", 0.5), ("region_retrieval/r2t/R@1", 1 / 3)):
            found.append(_difference(figure, gap * share, other, reader, "prompter"))
        recall = RECALL[CLOC] - RECALL[other]
        found += [_difference(f"retrieval/{way}/R@1", recall, other) for way in ("i2t", "t2i")]
        found.append(_difference("coherence/auc", 0.02, other))
    return found


def make_metrics() -> dict[str, Any]:
    """A comparison of four models on two splits, with every protocol."""
    split = {
        "data": "data/test",
        "digest": "5f0c7c6fd0bb1a42",
        "images": 10,
        "captions": 10,
        "distinct_captions": 9,
        "regions": 20,
        "classes": 4,
        "classes_occurring": 4,
        "phrases": 16,
        "ambiguous_phrases": 4,
        "bad_boxes": 1,
        "undecodable": [{"key": "000004", "reason": "OSError: truncated"}],
        "leaked": {
            "split": "train",
            "images": 10,
            "exact": 1,
            "near": 2,
            "bits": 4,
            "examples": [["000001", "train 000009"]],
        },
        "rows": [row(model, reader, value) for model, of in REGION.items() for reader, value in of.items()],
        "retrieval": {model: {"i2t": recalls(x), "t2i": recalls(x - 0.02)} for model, x in RECALL.items()},
        "grounding": {CLOC: block(**{"acc@0.5": 0.72, "mean_iou": 0.61})},
        "coherence": {
            model: block(inside=0.62, outside=0.4, gap=0.22, auc=0.8 if model == CLOC else 0.78) for model in REGION
        },
        "differences": differences(),
    }
    training = {STEPS: ("clip", 600, 251.0), COMPUTE: ("clip", 1200, 496.0), CLOC: ("cloc", 600, 450.0)}
    other = {**copy.deepcopy(split), "leaked": None, "undecodable": [], "bad_boxes": 0}
    return {
        "schema_version": 2,
        "protocols": {"region_recognition": 1, "retrieval": 1, "grounding": 1},
        "bootstrap": {"resamples": 500, "seed": 0, "level": 0.95},
        "headline": {"split": "test", "candidate": CLOC, "baselines": [STEPS, COMPUTE, PUBLIC]},
        "models": {
            name: {
                "objective": training.get(name, ("clip",))[0],
                "origin": "trained" if name in training else "public",
                "steps": training[name][1] if name in training else None,
                "cpu_seconds": training[name][2] if name in training else None,
                "slug": slug(name),
                "folder": f"work/{slug(name)}",
                "weights_sha256": f"{number}b7e" * 16,
                "parameters": 1_234_567,
                "readers": list(of),
            }
            for number, (name, of) in enumerate(REGION.items())
        },
        "splits": {"test": split, "unseen_pairs": other},
        "classification": {
            "things": {
                "digest": "aa11",
                "images": 40,
                "classes": 4,
                "models": {
                    name: {
                        "plain": block(n=40, top1=x, top5=1.0, mAcc=x),
                        "templates": block(n=40, top1=x + 0.05, top5=1.0, mAcc=x),
                    }
                    for name, x in RECALL.items()
                },
            }
        },
    }


def make_result(data: str, metrics: dict[str, Any], *, wrong: float = 0.4) -> tuple[Split, SplitResult]:
    """Single answers on the data set `data`, random ones, for the models and rows of `metrics`."""
    split = open_splits(data, ("test",))[0]
    items, rng = Items(), np.random.default_rng(0)
    for number, sample in enumerate(Dataset.open(data).read_all()):
        key, truth = sample.sample.key, split.truth[sample.sample.key]
        items.keys.append(key)
        for caption in truth.captions:
            items.caption_text.append(items.captions.setdefault(caption, len(items.captions)))
            items.caption_image.append(number)
        first = len(items.box_images)
        items.box_images += [number] * len(truth.boxes)
        for place, region in enumerate(truth.regions):
            items.named.append(region.text)
            items.named_images.append(number)
            items.named_rows.append(first + truth.boxes[region.box])
            items.labels.append(split.classes.index(region.label))
            items.label_images.append(number)
            items.label_places.append(place)
        for place in truth.phrases:
            items.phrases.append(truth.regions[place].text)
            items.phrase_images.append(number)
            items.phrase_places.append(place)
            items.phrase_boxes.append(truth.regions[place].box)
    labels, images = np.asarray(items.labels), np.unique(items.caption_image).astype(np.int64)
    scores = metrics["splits"][metrics["headline"]["split"]]
    recognitions = {}
    for item in scores["rows"]:
        other = rng.integers(len(split.classes), size=len(labels))
        predicted = np.where(rng.random(len(labels)) < wrong, other, labels)
        recognitions[item["model"], item["reader"]] = region_recognition.Recognition(
            predicted, (predicted == labels).astype(float)
        )
    retrievals = {model: _retrieval(items, len(images), rng) for model in metrics["models"]}
    truth = np.asarray(items.phrase_boxes)
    boxes = {CLOC: np.clip(truth + rng.normal(0, 0.08, truth.shape), 0, 1)} if CLOC in metrics["models"] else {}
    iou = {model: rng.random(len(truth)) for model in boxes}
    result = SplitResult(items, scores, recognitions, retrievals, images, boxes, iou)
    for item in scores["rows"]:
        result.region_retrievals[item["model"], item["reader"]] = _region_retrieval(items, rng)
    return split, result


def _retrieval(items: Items, images: int, rng: np.random.Generator) -> retrieval.RetrievalScores:
    image_of_T = np.asarray(items.caption_image)
    embeds_NE = rng.normal(size=(images, 8))
    texts_TE = embeds_NE[image_of_T] + rng.normal(0, 1.2, (len(image_of_T), 8))
    return retrieval.score(embeds_NE, texts_TE, image_of_T, draws_SN=statistics.draws(images))


def _region_retrieval(items: Items, rng: np.random.Generator) -> region_retrieval.RegionRetrievalScores:
    texts = region_retrieval.distinct(items.named)
    texts_UE = rng.normal(size=(len(texts.texts), 8))
    regions_RE = texts_UE[list(texts.number)] + rng.normal(0, 1.0, (len(items.named), 8))
    images = np.asarray(items.named_images)
    draws = statistics.draws(len(items.keys))
    return region_retrieval.score(regions_RE, texts_UE, np.asarray(texts.number), images, draws_SN=draws)
