"""Features of a split: each shard is encoded once by each model, whoever asks, and kept by the hash of its content.

The shard is the unit: another model encodes only itself, and a table that changed only its shard. At most one model's
embeddings are in memory at a time; pixels and tokens never stay. What is kept is keyed by everything that it depends
on: images, truth, weights, configuration, tokenizer, readers, and the source that computes it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache as cached
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import cloc
from cloc.boxes import BoxesXYXY
from cloc.errors import DataError
from cloc.evaluation import coherence
from cloc.evaluation.cache import FeatureCache
from cloc.evaluation.encoding import ShardFeatures, encode, encoders
from cloc.evaluation.models import EvaluatedModel
from cloc.evaluation.tasks import ShardImages, Task
from cloc.evaluation.truth import ImageTruth, Split, truth_digest
from cloc.evaluation.workers import Work, encode_all
from cloc.stage import fingerprint

# What computes features; `cloc.evaluation.encoding` and `cloc.data` hand on what these make.
_SOURCES = (
    "boxes.py",
    *("data/images.py", "data/transforms.py"),
    *("evaluation/coherence.py", "evaluation/encoding.py", "evaluation/models.py", "evaluation/truth.py"),
    *("model/configuration.py", "model/masked.py", "model/modeling.py", "model/processing.py"),
    *("model/prompter.py", "model/roi_align.py"),
)
_LIBRARIES = ("pillow", "transformers")


@dataclass
class Items:
    """What the rows of the feature arrays are, the same for every model.

    Attributes:
        keys: of the images, in order.
        sizes: width and height of each, pixels.
        captions: distinct human captions; `caption_text` is the number of its text, `caption_image` of its image.
        texts: all distinct texts, with their rows in `Features.texts_UE`.
        box_images: image of each distinct box, which is a row of `Features.regions`.
        labels, label_images: class number and image number of every labelled region.
        label_places: which region of its image each labelled region is.
        label_rows: which row of `Features.regions`.
        named, named_images, named_rows: text, image and row of every region with a text.
        phrases, phrase_images, phrase_places: text, image and region of every phrase that is asked.
        phrase_boxes: its labelled box, xyxy of the original image.
        ambiguous: phrases not asked.
        asked, asked_images, asked_rows: text, image and row of every question about attributes.
        negatives: texts of each question, by level.
        refused: (key, reason) of images that cannot be decoded.
    """

    keys: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    captions: dict[str, int] = field(default_factory=dict)
    caption_text: list[int] = field(default_factory=list)
    caption_image: list[int] = field(default_factory=list)
    texts: dict[str, int] = field(default_factory=dict)
    box_images: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    label_images: list[int] = field(default_factory=list)
    label_places: list[int] = field(default_factory=list)
    label_rows: list[int] = field(default_factory=list)
    named: list[str] = field(default_factory=list)
    named_images: list[int] = field(default_factory=list)
    named_rows: list[int] = field(default_factory=list)
    phrases: list[str] = field(default_factory=list)
    phrase_images: list[int] = field(default_factory=list)
    phrase_places: list[int] = field(default_factory=list)
    phrase_boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    ambiguous: int = 0
    asked: list[str] = field(default_factory=list)
    asked_images: list[int] = field(default_factory=list)
    asked_rows: list[int] = field(default_factory=list)
    negatives: list[dict[str, tuple[str, ...]]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def note(self, key: str, size: tuple[int, int], truth: ImageTruth, *, classes: dict[str, int]) -> None:
        """Adds an image and what is known of it."""
        number, first = len(self.keys), len(self.box_images)
        self.keys.append(key)
        self.sizes.append(size)
        self.box_images += [number] * len(truth.boxes)
        for caption in truth.captions:
            self.caption_text.append(self.captions.setdefault(caption, len(self.captions)))
            self.caption_image.append(number)
        for place, region in enumerate(truth.regions):
            row = first + truth.boxes[region.box]
            if region.label:
                self.labels.append(classes[region.label])
                self.label_images.append(number)
                self.label_places.append(place)
                self.label_rows.append(row)
            if region.text:
                self.named.append(region.text)
                self.named_images.append(number)
                self.named_rows.append(row)
        for place in truth.phrases:
            self.phrases.append(truth.regions[place].text)
            self.phrase_images.append(number)
            self.phrase_places.append(place)
            self.phrase_boxes.append(truth.regions[place].box)
        self.ambiguous += truth.ambiguous
        for question in truth.questions:
            self.asked.append(question.text)
            self.asked_images.append(number)
            self.asked_rows.append(first + truth.boxes[question.box])
            self.negatives.append(dict(question.negatives))


@dataclass(frozen=True)
class Features:
    """One model's features of a split.

    Attributes:
        images_NE, classes_CE: of images and class names, normalised.
        texts_UE: of the distinct texts `Items.texts`, normalised.
        regions: of every distinct box, by reader, (Q, E), normalised.
        coherence_Q3: of every distinct box, see `coherence.measure`.
        boxes: predicted box of every phrase, xyxy of the original image, (P, 4); None for a model that finds none.
    """

    images_NE: npt.NDArray[np.float32]
    texts_UE: npt.NDArray[np.float32]
    classes_CE: npt.NDArray[np.float32]
    regions: dict[str, npt.NDArray[np.float32]]
    coherence_Q3: npt.NDArray[np.float64]
    boxes: BoxesXYXY | None


@dataclass(frozen=True)
class Encoder:
    """Models that encode what the cache lacks.

    Attributes:
        models: the models.
        cache: of features.
        batch_size: images a batch.
        workers: processes over shards; 0 decides.
    """

    models: Sequence[EvaluatedModel]
    cache: FeatureCache
    batch_size: int
    workers: int = 0

    def ensure(self, tasks: Sequence[Task], *, what: str) -> None:
        """Encodes what the cache lacks of these tasks.

        Args:
            tasks: the work.
            what: the name of it, for lines of progress.

        Raises:
            DataError: a shard is broken.
            ClocError: a worker died.
        """
        wanted = [(task, model, feature_key(task, model)) for task in tasks for model in self.models]
        present = self.cache.present([key for _, _, key in wanted])
        lacking: dict[int, Work] = {}
        for number, ((task, model, key), there) in enumerate(zip(wanted, present, strict=True)):
            if not there:
                work = lacking.setdefault(number // len(self.models), Work(task, {}))
                work.keys[model.name] = key
        if not lacking:
            print(f"evaluation: {what}: all features were kept by an earlier run", flush=True)
            return
        encode_all(
            list(lacking.values()),
            self.models,
            self.cache,
            batch_size=self.batch_size,
            workers=self.workers,
            what=what,
        )

    def features(self, task: Task, model: EvaluatedModel) -> ShardFeatures:
        """A model's features of a task: from the cache, or made again where that is broken or was emptied."""
        key = feature_key(task, model)
        arrays = self.cache.get(key)
        if arrays is not None:
            try:
                return ShardFeatures.from_arrays(arrays)
            except (KeyError, ValueError, TypeError):
                print(f"evaluation: features {key[:12]} of {task.split} are broken; they are made again", flush=True)
        with encoders(model.device) as pool:
            (made,) = encode(task, [model], pool, batch_size=self.batch_size)
        self.cache.put(key, made.to_arrays())
        return made

    @torch.inference_mode()
    def texts(self, model: EvaluatedModel, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embeddings of texts (T, E), normalised; kept like features."""
        key = sha256(f"texts {_model_digest(model)} {fingerprint(list(texts))}".encode()).hexdigest()
        arrays = self.cache.get(key)
        if arrays is not None and len(arrays.get("texts", ())) == len(texts):
            return np.asarray(arrays["texts"], dtype=np.float32)
        made = model.embed_texts(texts, batch_size=self.batch_size)
        self.cache.put(key, {"texts": made})
        return made


@dataclass(frozen=True)
class EncodedSplit:
    """A split that every model has encoded.

    Attributes:
        split: the split.
        items: what the rows of features are.
    """

    split: Split
    items: Items
    encoder: Encoder
    tasks: Sequence[Task]

    def features(self, model: EvaluatedModel) -> Features:
        """A model's features, read from the cache: let go of one model's before the next one's are asked for."""
        items, width = self.items, model.model.embed_dim
        boxes = len(items.box_images)
        images_NE, found_P4 = _Stack(len(items.keys), width), _Stack(len(items.phrases) * model.grounds, 4)
        regions = {reader: _Stack(boxes, width) for reader in model.readers}
        coherence_Q3 = _Stack(boxes, len(coherence.COLUMNS), dtype=np.float64)
        texts_UE, known_U = (
            np.zeros((len(items.texts), width), dtype=np.float32),
            np.zeros(len(items.texts), dtype=bool),
        )
        keys: list[str] = []
        for task in self.tasks:
            part = self.encoder.features(task, model)
            keys += part.keys
            images_NE.add(part.images_nE)
            found_P4.add(part.boxes_P4)
            coherence_Q3.add(part.coherence_Q3)
            for reader, stack in regions.items():
                stack.add(part.regions[reader])
            numbers = np.array([items.texts[text] for text in task.texts], dtype=np.int64)
            new = ~known_U[numbers]  # of equal texts the first counts, so that they stay equal
            texts_UE[numbers[new]], known_U[numbers] = part.texts_UE[new], True
        if keys != items.keys:
            raise DataError(f"{self.split.name}: {model.name} has features of other images; empty the cache")
        return Features(
            images_NE=images_NE.rows,
            texts_UE=texts_UE,
            classes_CE=self.encoder.texts(model, self.split.classes),
            regions={reader: stack.rows for reader, stack in regions.items()},
            coherence_Q3=coherence_Q3.rows,
            boxes=found_P4.rows.astype(np.float64) if model.grounds else None,
        )


class _Stack:
    """Rows that come in pieces, their number known: nothing is in memory twice."""

    def __init__(self, count: int, width: int, *, dtype: Any = np.float32) -> None:
        self.rows: npt.NDArray[Any] = np.zeros((count, width), dtype=dtype)
        self._filled = 0

    def add(self, rows: npt.NDArray[Any]) -> None:
        self.rows[self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)


def encode_split(split: Split, encoder: Encoder, *, quarantine_limit: float) -> EncodedSplit:
    """Encodes a split by every model, as far as that was not done before.

    Args:
        split: the split.
        encoder: the models.
        quarantine_limit: largest share of images that may be undecodable.

    Raises:
        DataError: a shard is broken, or too many images cannot be decoded.
    """
    tasks = list(_tasks(split))
    encoder.ensure(tasks, what=split.name)
    classes = {name: number for number, name in enumerate(split.classes)}
    items = Items()
    for task in tasks:
        found, truth = encoder.features(task, encoder.models[0]), task.truth or {}
        for key, (width, height) in zip(found.keys, found.sizes_n2.tolist(), strict=True):
            items.note(key, (width, height), truth[key], classes=classes)
        items.refused += found.refused
        for text in task.texts:
            items.texts.setdefault(text, len(items.texts))
    _check_refused(split, items, limit=quarantine_limit)
    return EncodedSplit(split, items, encoder, tasks)


def _tasks(split: Split) -> Iterator[Task]:
    """A task a shard that something is known of."""
    for shard in split.dataset.manifest.shards:
        truth = split.of_shard(shard)
        if truth:
            yield Task(split.name, ShardImages(split.dataset.images.url, shard), len(truth), truth)


def _check_refused(split: Split, items: Items, *, limit: float) -> None:
    total = len(items.keys) + len(items.refused)
    if not total:
        raise DataError(
            f"{split.dataset.images.url}: no image of the split {split.name!r} is one that its tables name; the tables "
            "belong to another data set"
        )
    if items.refused and (len(items.refused) > limit * total or not items.keys):
        key, reason = items.refused[0]
        raise DataError(
            f"{split.dataset.images.url}: {len(items.refused)} of {total} images of the split {split.name!r} cannot be "
            f"decoded, more than data.quarantine_limit {limit} (first: {key}: {reason})"
        )


def feature_key(task: Task, model: EvaluatedModel) -> str:
    """What a task's features by a model are kept under: a hash of all that they depend on."""
    truth = "every image" if task.truth is None else truth_digest(task.truth)
    return sha256(f"{task.images.digest} {truth} {_model_digest(model)}".encode()).hexdigest()


@cached
def code_digest() -> str:
    """Hash of the source that computes features, and of the versions of the libraries that it leaves pixels to."""
    digest = sha256("".join(f"{name} {version(name)} " for name in _LIBRARIES).encode())
    for name in _SOURCES:
        digest.update((Path(cloc.__file__).parent / name).read_bytes())
    return digest.hexdigest()


def _model_digest(model: EvaluatedModel) -> str:
    """Hash of a model: weights, configuration, tokenizer, pixels, and what is read with it."""
    processor = model.processor
    settings = {key: value for key, value in model.model.config.to_dict().items() if not key.startswith("_")}
    return fingerprint(
        code_digest(),
        model.digest,
        settings,
        _tokenizer_digest(processor.tokenizer),
        [processor.image_size, processor.context_length, processor.pad_to_full_length],
        [processor.pixel_mean, processor.pixel_std],
        [model.readers, model.grounds],
    )


def _tokenizer_digest(tokenizer: Any) -> str:
    """Hash of a tokenizer, but for how it was last asked to pad and to truncate."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    body = json.loads(backend.to_str()) if backend is not None else {"vocabulary": tokenizer.get_vocab()}
    kept = {key: value for key, value in body.items() if key not in ("padding", "truncation")}
    return sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
