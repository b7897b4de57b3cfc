"""The protocols applied to what models made of a split: one model's embeddings at a time.

Which protocols run is decided by the split's truth: captions make retrieval, classes of boxes recognition and a linear
probe, texts of boxes region retrieval and grounding, questions attributes, and any boxes coherence.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from cloc.evaluation import (
    attributes,
    coherence,
    grounding,
    linear_probe,
    region_recognition,
    region_retrieval,
    retrieval,
    statistics,
)
from cloc.evaluation.differences import differences
from cloc.evaluation.features import EncodedSplit, Features, Items
from cloc.evaluation.metrics import PROTOCOLS, SplitResult, candidate_of
from cloc.evaluation.models import EvaluatedModel
from cloc.evaluation.statistics import Estimate
from cloc.evaluation.truth import Split, truth_digest


def score_split(encoded: EncodedSplit, models: Sequence[EvaluatedModel], *, probe_items: int) -> SplitResult:
    """Applies the protocols to all models.

    Args:
        encoded: the split.
        models: the models, in the order of their rows.
        probe_items: items that a linear probe is fitted on at most; 0 fits none.
    """
    scorer = _Scorer(encoded, probe_items=probe_items)
    for model in models:
        print(f"evaluation: {encoded.split.name}: scoring {model.name}", flush=True)
        scorer.add(model.name, encoded.features(model))
    result = scorer.result
    candidate = candidate_of(models)
    result.scores["differences"] = differences(result.estimates, candidate=candidate) if candidate else []
    return result


def set_digest(split: Split) -> str:
    """Hash of an evaluation set: images, truth, classes, protocols and resamples. Equal ones can be compared."""
    parts = [
        [shard.content for shard in split.dataset.manifest.shards],
        truth_digest(split.truth),
        split.classes,
        PROTOCOLS,
        [statistics.RESAMPLES, statistics.SEED],
    ]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _counts(split: Split, items: Items) -> dict[str, Any]:
    return {
        "data": split.dataset.images.url,
        "digest": set_digest(split),
        "images_digest": split.dataset.digest,
        "images": len(items.keys),
        "captions": len(items.caption_text),
        "distinct_captions": len(items.captions),
        "regions": len(items.labels),
        "classes": len(split.classes),
        "classes_occurring": len(set(items.labels)),
        "region_texts": len(items.named),
        "phrases": len(items.phrases),
        "ambiguous_phrases": items.ambiguous,
        "questions": len(items.asked),
        "bad_boxes": split.bad_boxes,
        "undecodable": [{"key": key, "reason": reason} for key, reason in items.refused],
        "leaked": None,
        "rows": [],
        "retrieval": {},
        "grounding": {},
        "coherence": {},
        "differences": [],
    }


class _Scorer:
    """Scores one model after another; what is the same for all of them is made once."""

    def __init__(self, encoded: EncodedSplit, *, probe_items: int) -> None:
        self._split, self._items, self._probe_items = encoded.split, encoded.items, probe_items
        items = encoded.items
        self._draws = statistics.draws(len(items.keys))
        self._labels, self._label_rows = _ints(items.labels), _ints(items.label_rows)
        self._label_images = _ints(items.label_images)
        captioned = np.unique(_ints(items.caption_image))
        self.result = SplitResult(items, _counts(encoded.split, items), {}, {}, captioned, {}, {})

    def add(self, model: str, found: Features) -> None:
        """Applies every protocol that the split has truth for to a model."""
        for reader, regions_QE in found.regions.items():
            row: dict[str, Any] = {"model": model, "reader": reader}
            if self._items.labels:
                row["region"] = self._recognition(model, reader, regions_QE, found)
                if self._probe_items:
                    row["probe"] = self._probe(model, reader, regions_QE)
            if self._items.named:
                row["region_retrieval"] = self._region_retrieval(model, reader, regions_QE, found)
            if self._items.asked:
                row["attributes"] = self._attributes(model, reader, regions_QE, found)
            if len(row) > 2:
                self.result.scores["rows"].append(row)
        if self._items.captions:
            self.result.scores["retrieval"][model] = self._retrieval(model, found)
        if found.boxes is not None and self._items.phrases:
            self.result.scores["grounding"][model] = self._grounding(model, found)
        if self._items.box_images:
            scores = coherence.score(found.coherence_Q3, _ints(self._items.box_images), draws_SN=self._draws)
            block = self._block("coherence", scores.figures, model)
            self.result.scores["coherence"][model] = {**block, "left_out": scores.left_out}

    def _block(self, path: str, figures: Mapping[str, Estimate], model: str, reader: str = "") -> dict[str, Any]:
        """A block of `metrics.json`; its figures are kept."""
        for name, estimate in figures.items():
            self.result.estimates[f"{path}/{name}", model, reader] = estimate
        return statistics.scores(figures)

    @cached_property
    def _areas(self) -> statistics.Floats:
        """Of labelled boxes, in pixels."""
        items = self._items
        boxes = [
            self._split.truth[items.keys[image]].regions[place].box
            for image, place in zip(items.label_images, items.label_places, strict=True)
        ]
        widths_R, heights_R = np.asarray(items.sizes, dtype=np.int64)[self._label_images].T
        return region_recognition.box_areas(np.asarray(boxes), widths_R=widths_R, heights_R=heights_R)

    def _recognition(self, model: str, reader: str, regions_QE: Any, found: Features) -> dict[str, Any]:
        recognition = region_recognition.recognize(regions_QE[self._label_rows], found.classes_CE, self._labels)
        scores = region_recognition.score(
            recognition.credit,
            self._labels,
            self._label_images,
            classes=self._split.classes,
            draws_SN=self._draws,
            areas_R=self._areas,
        )
        self.result.recognitions[model, reader] = recognition
        return {
            **self._block("region", scores.figures, model, reader),
            "classes": scores.classes,
            "per_class": {name: {"accuracy": acc, "n": n} for name, (acc, n) in scores.per_class.items()},
            "by_size": {
                size: self._block(f"region/by_size/{size}", figures, model, reader)
                for size, figures in scores.by_size.items()
            },
        }

    def _probe(self, model: str, reader: str, regions_QE: Any) -> dict[str, Any]:
        scores = linear_probe.score(
            regions_QE[self._label_rows],
            self._labels,
            self._label_images,
            classes=self._split.classes,
            draws_SN=self._draws,
            max_train=self._probe_items,
        )
        return {**self._block("probe", scores.figures, model, reader), **probe_details(scores)}

    @cached_property
    def _texts(self) -> region_retrieval.DistinctTexts:
        return region_retrieval.distinct(self._items.named)

    def _region_retrieval(self, model: str, reader: str, regions_QE: Any, found: Features) -> dict[str, Any]:
        texts, items = self._texts, self._items
        scores = region_retrieval.score(
            regions_QE[_ints(items.named_rows)],
            found.texts_UE[[items.texts[text] for text in texts.texts]],
            _ints(texts.number),
            _ints(items.named_images),
            draws_SN=self._draws,
        )
        self.result.region_retrievals[model, reader] = scores
        ways = {"r2t": scores.region_to_text, "t2r": scores.text_to_region}
        return {way: self._way(f"region_retrieval/{way}", item, model, reader) for way, item in ways.items()}

    @cached_property
    def _questions(self) -> tuple[npt.NDArray[np.int64], Mapping[str, attributes.Negatives]]:
        """Number of each question's own text, and the negatives by level."""
        texts = self._items.texts
        own = [texts[text] for text in self._items.asked]
        negatives = [
            {level: [texts[text] for text in group] for level, group in levels.items()}
            for levels in self._items.negatives
        ]
        return _ints(own), attributes.collect(own, negatives)

    def _attributes(self, model: str, reader: str, regions_QE: Any, found: Features) -> dict[str, Any]:
        own_P, negatives = self._questions
        levels = attributes.score(
            regions_QE[_ints(self._items.asked_rows)],
            found.texts_UE,
            own_P,
            _ints(self._items.asked_images),
            negatives,
            draws_SN=self._draws,
        )
        return {
            level: {
                **self._block(f"attributes/{level}", scores.figures, model, reader),
                "negatives": scores.negatives,
                "chance": scores.chance,
            }
            for level, scores in levels.items()
        }

    def _retrieval(self, model: str, found: Features) -> dict[str, Any]:
        items, captioned = self._items, self.result.captioned
        rows = _ints([items.texts[caption] for caption in items.captions])
        scores = retrieval.score(
            found.images_NE[captioned],
            found.texts_UE[rows[_ints(items.caption_text)]],
            np.searchsorted(captioned, _ints(items.caption_image)),
            draws_SN=statistics.draws(len(captioned)),
        )
        self.result.retrievals[model] = scores
        ways = {"i2t": scores.image_to_text, "t2i": scores.text_to_image}
        return {way: self._way(f"retrieval/{way}", item, model) for way, item in ways.items()}

    def _way(self, path: str, way: retrieval.Direction, model: str, reader: str = "") -> dict[str, Any]:
        block = self._block(path, way.figures, model, reader)
        return {**block, "queries": way.queries, "candidates": way.candidates}

    def _grounding(self, model: str, found: Features) -> dict[str, Any]:
        items = self._items
        assert found.boxes is not None
        labelled = np.asarray(items.phrase_boxes, dtype=np.float64).reshape(-1, 4)
        scores = grounding.score(found.boxes, labelled, _ints(items.phrase_images), draws_SN=self._draws)
        self.result.boxes[model], self.result.iou[model] = found.boxes, np.asarray(scores.iou)
        return self._block("grounding", scores.figures, model)


def probe_details(scores: linear_probe.ProbeScores) -> dict[str, Any]:
    """What stands beside a probe's figures."""
    return {
        "train_items": scores.train_items,
        "test_items": scores.test_items,
        "missing": list(scores.missing),
        "converged": scores.converged,
    }


def _ints(values: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.asarray(values, dtype=np.int64)
