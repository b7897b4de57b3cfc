"""Zero-shot classification of whole images: a set through all models, by the same cache as splits."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from cloc.config import Config
from cloc.evaluation import classification, linear_probe, statistics
from cloc.evaluation.class_data import ClassSet, check_refused, open_classes
from cloc.evaluation.class_parts import Part
from cloc.evaluation.differences import Key, differences
from cloc.evaluation.features import Encoder
from cloc.evaluation.metrics import candidate_of
from cloc.evaluation.models import EvaluatedModel
from cloc.evaluation.scoring import probe_details
from cloc.evaluation.statistics import Estimate
from cloc.evaluation.tasks import ClassImages, Task


def classify(config: Config, encoder: Encoder) -> dict[str, Any]:
    """The part `classification` of `metrics.json`; empty where no set is named.

    Raises:
        DataError: there is no such set, or too many of its images cannot be decoded.
        ConfigError: templates cannot be used.
    """
    settings = config.evaluation
    if not settings.classification:
        return {}
    found = open_classes(settings.classification, train_images=settings.probe_items)
    for note in found.notes:
        print(f"evaluation: {found.name}: {note}", flush=True)
    own = classification.read_templates(settings.templates) if settings.templates else found.templates
    templates = own or classification.TEMPLATES
    tasks = [*_tasks(found.name, found.test), *(_tasks(found.name, found.train) if found.train else ())]
    encoder.ensure(tasks, what=found.name)
    scores: dict[str, Any] = {}
    estimates: dict[Key, Estimate] = {}
    for model in encoder.models:
        scores[model.name], figures = _score(found, model, encoder, templates, config)
        estimates |= {(path, model.name, ""): estimate for path, estimate in figures.items()}
    body = {
        "data": found.url,
        "digest": found.digest,
        "images": found.test.images,
        "classes": len(found.classes),
        "templates": list(templates),
        "models": scores,
        "differences": differences(estimates, candidate=candidate_of(encoder.models)),
    }
    return {found.name: body}


def _tasks(name: str, part: Part) -> Iterator[Task]:
    for chunk in part.chunks:
        yield Task(name, ClassImages(chunk), len(chunk.keys))


def _score(
    found: ClassSet, model: EvaluatedModel, encoder: Encoder, templates: tuple[str, ...], config: Config
) -> tuple[dict[str, Any], dict[str, Estimate]]:
    """A model's part, and its figures by path ("plain/top1")."""
    images_NE, labels_N, refused = _features(found.name, found.test, model, encoder)
    check_refused(found, refused, limit=config.data.quarantine_limit)
    draws_SN = statistics.draws(len(labels_N))
    blocks: dict[str, Any] = {}
    figures: dict[str, Estimate] = {}
    for way, filled in (("plain", classification.PLAIN), ("templates", templates)):
        classes_CE = classification.embed_classes(found.classes, filled, lambda texts: encoder.texts(model, texts))
        scores = classification.score(images_NE, classes_CE, labels_N, classes=found.classes, draws_SN=draws_SN)
        figures |= {f"{way}/{name}": estimate for name, estimate in scores.figures.items()}
        blocks[way] = {
            **statistics.scores(scores.figures),
            "classes": scores.classes,
            "per_class": {name: {"accuracy": acc, "n": n} for name, (acc, n) in scores.per_class.items()},
        }
    if found.train is not None and config.evaluation.probe_items:
        train_IE, train_labels, _ = _features(found.name, found.train, model, encoder)
        drawn = np.random.default_rng(0).permutation(len(train_IE))[: config.evaluation.probe_items]
        probe = linear_probe.score_given(
            train_IE[drawn],
            train_labels[drawn],
            images_NE,
            labels_N,
            np.arange(len(labels_N)),
            classes=found.classes,
            draws_SN=draws_SN,
        )
        figures |= {f"probe/{name}": estimate for name, estimate in probe.figures.items()}
        blocks["probe"] = {**statistics.scores(probe.figures), **probe_details(probe)}
    return blocks, figures


def _features(
    name: str, part: Part, model: EvaluatedModel, encoder: Encoder
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], list[tuple[str, str]]]:
    """Embeddings and classes of the images that could be decoded, and the others with their reasons."""
    embeds: list[npt.NDArray[np.float32]] = []
    labels: list[int] = []
    refused: list[tuple[str, str]] = []
    for chunk, task in zip(part.chunks, _tasks(name, part), strict=True):
        features = encoder.features(task, model)
        of_key = dict(zip(chunk.keys, chunk.labels, strict=True))
        embeds.append(features.images_nE)
        labels += [of_key[key] for key in features.keys]
        refused += features.refused
    return np.concatenate(embeds), np.asarray(labels, dtype=np.int64), refused
