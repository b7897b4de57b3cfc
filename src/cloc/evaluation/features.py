"""Features of a split: images stream shard after shard and are encoded once by every model; pixels are let go.

What stays is small: an embedding an image, a caption and a region and reader, and a box a phrase.
"""

import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from cloc.boxes import BoxesXYXY, Letterbox, as_boxes
from cloc.data.transforms import decode, letterbox
from cloc.errors import DataError
from cloc.evaluation.models import EvaluatedModel, Reader
from cloc.evaluation.truth import ImageTruth, Split

_REGIONS_PER_IMAGE = 8  # a batch of images ends early when it holds more boxes than this an image
_PROGRESS_EVERY = 5.0  # seconds

Pixels = npt.NDArray[np.uint8]


@dataclass
class Items:
    """What the rows of the feature arrays are, the same for every model.

    Attributes:
        keys: of the images, in order.
        captions: distinct human captions; `caption_text` is the number of its text, `caption_image` of its image.
        labels, label_images: class number and image number of every labelled region.
        label_places: which region of its image each labelled region is.
        phrases, phrase_images, phrase_places: text, image and region of every phrase that is asked.
        phrase_boxes: its labelled box, xyxy of the original image.
        ambiguous: phrases not asked.
        refused: (key, reason) of images that cannot be decoded.
    """

    keys: list[str] = field(default_factory=list)
    captions: dict[str, int] = field(default_factory=dict)
    caption_text: list[int] = field(default_factory=list)
    caption_image: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    label_images: list[int] = field(default_factory=list)
    label_places: list[int] = field(default_factory=list)
    phrases: list[str] = field(default_factory=list)
    phrase_images: list[int] = field(default_factory=list)
    phrase_places: list[int] = field(default_factory=list)
    phrase_boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    ambiguous: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Features:
    """One model's features of a split.

    Attributes:
        images_NE, texts_UE, classes_CE: of images, distinct captions and class names, normalised.
        regions: of every labelled region, by reader, (R, E), normalised.
        boxes: predicted box of every phrase, xyxy of the original image, (P, 4); None for a model that finds none.
        texts_TE: of captions, one row a caption.
    """

    images_NE: npt.NDArray[np.float32]
    texts_TE: npt.NDArray[np.float32]
    classes_CE: npt.NDArray[np.float32]
    regions: dict[str, npt.NDArray[np.float32]]
    boxes: BoxesXYXY | None


@dataclass(frozen=True)
class _Batch:
    """Images made ready: pixels by side of the network input, and the maps of their boxes."""

    truths: list[ImageTruth]
    images: dict[int, Pixels]
    frames: dict[int, list[Letterbox]]
    crops: dict[int, Pixels]


@contextmanager
def _workers(device: torch.device) -> Iterator[Executor]:
    """Threads that encode, one a core with one torch thread each; a single one feeds a GPU.

    Whole batches in parallel need no barrier inside an operation: two to three times faster than torch's own threads
    where the cores are shared with other work, and no slower where they are not.
    """
    if device.type == "cuda":
        with ThreadPoolExecutor(1) as pool:
            yield pool
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def encode_split(
    split: Split, models: Sequence[EvaluatedModel], *, batch_size: int, quarantine_limit: float
) -> tuple[Items, dict[str, Features]]:
    """Encodes a split by every model.

    Args:
        split: the split.
        models: the models; results are by their names.
        batch_size: images a batch.
        quarantine_limit: largest share of images that may be undecodable.

    Raises:
        DataError: a shard is broken, or too many images cannot be decoded.
    """
    items = Items()
    sizes = sorted({model.size for model in models})
    classes = {name: number for number, name in enumerate(split.classes)}
    collectors = [_Collector(model, batch_size) for model in models]
    progress = _Progress(split.name, split.dataset.manifest.images)
    pending: deque[tuple[int, list[Future[_Encoded]]]] = deque()

    def drain(keep: int) -> None:
        while len(pending) > keep:
            images, futures = pending.popleft()
            for collector, future in zip(collectors, futures, strict=True):
                while not wait([future], timeout=_PROGRESS_EVERY).done:
                    progress.tell(0)
                collector.add(future.result())
            progress.tell(images)

    with _workers(models[0].device) as pool:
        for batch in _ahead(_batches(split, items, classes, sizes, batch_size)):
            pending.append((len(batch.truths), [pool.submit(collector.encode, batch) for collector in collectors]))
            drain(keep=1)
        drain(keep=0)
        _check_refused(split, items, limit=quarantine_limit)
        finished = [pool.submit(collector.finish, split, items) for collector in collectors]
        return items, {model.name: future.result() for model, future in zip(models, finished, strict=True)}


def _ahead(batches: Iterator[_Batch]) -> Iterator[_Batch]:
    """The batches, the next one made in a thread while this one is encoded."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = thread.submit(next, batches, None)
            yield batch


def _check_refused(split: Split, items: Items, *, limit: float) -> None:
    total = len(items.keys) + len(items.refused)
    if items.refused and (len(items.refused) > limit * total or not items.keys):
        key, reason = items.refused[0]
        raise DataError(
            f"{split.dataset.images.url}: {len(items.refused)} of {total} images of the split {split.name!r} cannot be "
            f"decoded, more than data.quarantine_limit {limit} (first: {key}: {reason})"
        )


class _Progress:
    """A line every few seconds."""

    def __init__(self, split: str, total: int) -> None:
        self._split, self._total, self._done = split, total, 0
        self._start = self._told = time.monotonic()

    def tell(self, images: int) -> None:
        self._done += images
        now = time.monotonic()
        if now - self._told >= _PROGRESS_EVERY or (images and self._done >= self._total):
            self._told = now
            print(
                f"evaluation: {self._split}: {self._done} of {self._total} images, {now - self._start:.0f} s",
                flush=True,
            )


def _batches(
    split: Split, items: Items, classes: dict[str, int], sizes: Sequence[int], batch_size: int
) -> Iterator[_Batch]:
    """Decoded, letterboxed and cropped images; fills `items` as it goes."""
    pending = _Pending(sizes)
    for shard in split.dataset.manifest.shards:
        for sample in split.dataset.read_samples(shard):
            truth = split.truth.get(sample.key, ImageTruth())
            if not truth.captions and not truth.regions:
                continue
            try:
                image = decode(sample.image)
            except (OSError, ValueError, Image.DecompressionBombError) as error:
                items.refused.append((sample.key, f"{type(error).__name__}: {error}"[:200]))
                continue
            _note(items, sample.key, truth, classes)
            pending.add(image, truth)
            if len(pending.truths) >= batch_size or pending.boxes >= batch_size * _REGIONS_PER_IMAGE:
                yield pending.batch()
                pending = _Pending(sizes)
    if pending.truths:
        yield pending.batch()


def _note(items: Items, key: str, truth: ImageTruth, classes: dict[str, int]) -> None:
    number = len(items.keys)
    items.keys.append(key)
    for caption in truth.captions:
        items.caption_text.append(items.captions.setdefault(caption, len(items.captions)))
        items.caption_image.append(number)
    for place, region in enumerate(truth.regions):
        if region.label:
            items.labels.append(classes[region.label])
            items.label_images.append(number)
            items.label_places.append(place)
    for place in truth.phrases:
        items.phrases.append(truth.regions[place].text)
        items.phrase_images.append(number)
        items.phrase_places.append(place)
        items.phrase_boxes.append(truth.regions[place].box)
    items.ambiguous += truth.ambiguous


class _Pending:
    """A batch in the making."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.truths: list[ImageTruth] = []
        self.boxes = 0
        self._images: dict[int, list[Pixels]] = {size: [] for size in sizes}
        self._crops: dict[int, list[Pixels]] = {size: [] for size in sizes}
        self._frames: dict[int, list[Letterbox]] = {size: [] for size in sizes}

    def add(self, image: Image.Image, truth: ImageTruth) -> None:
        """Keeps what the network sees of an image and of its labelled regions."""
        self.truths.append(truth)
        crops = [crop(image, region.box) for region in truth.regions if region.label]
        self.boxes += len(crops)
        for size in self._images:
            pixels, frame = letterbox(image, size=size)
            self._images[size].append(pixels)
            self._frames[size].append(frame)
            self._crops[size] += [letterbox(part, size=size)[0] for part in crops]

    def batch(self) -> _Batch:
        """The batch, stacked."""
        return _Batch(
            truths=self.truths,
            images={size: np.stack(images) for size, images in self._images.items()},
            frames=self._frames,
            crops={
                size: np.stack(crops) if crops else np.zeros((0, size, size, 3), dtype=np.uint8)
                for size, crops in self._crops.items()
            },
        )


def crop(image: Image.Image, box: Sequence[float]) -> Image.Image:
    """The pixels that a box touches, at least one: no margin around it."""
    x1, y1, x2, y2 = box
    left, top = min(int(x1 * image.width), image.width - 1), min(int(y1 * image.height), image.height - 1)
    right, bottom = int(np.ceil(x2 * image.width)), int(np.ceil(y2 * image.height))
    return image.crop((left, top, max(left + 1, right), max(top + 1, bottom)))


@dataclass(frozen=True)
class _Encoded:
    """A batch through one model; see `Features`."""

    images: npt.NDArray[np.float32]
    regions: Mapping[Reader, npt.NDArray[np.float32]]
    boxes: BoxesXYXY


class _Collector:
    """One model's features, batch after batch. `encode` runs in any thread; `add` keeps the order."""

    def __init__(self, model: EvaluatedModel, batch_size: int) -> None:
        self._model, self._batch_size = model, batch_size
        self._parts: list[_Encoded] = []

    @torch.inference_mode()
    def encode(self, batch: _Batch) -> _Encoded:
        """Everything that needs the batch's pixels or tokens."""
        model = self._model
        encoded = model.encode_images(batch.images[model.size], batch_size=self._batch_size)
        boxes = [
            frame.to_padded([region.box for region in truth.regions if region.label])
            for frame, truth in zip(batch.frames[model.size], batch.truths, strict=True)
        ]
        regions = {
            reader: model.embed_images(batch.crops[model.size], batch_size=self._batch_size)
            if reader == "crop"
            else model.read_regions(encoded, boxes, reader)
            for reader in model.readers
        }
        found = self._ground(encoded.tokens_BND, batch) if model.grounds else np.zeros((0, 4))
        return _Encoded(encoded.embeds, regions, found)

    def _ground(self, tokens_BND: torch.Tensor, batch: _Batch) -> BoxesXYXY:
        """Boxes of the batch's phrases in the original images."""
        phrases = [[truth.regions[place].text for place in truth.phrases] for truth in batch.truths]
        distinct = list({text: None for texts in phrases for text in texts})
        coded = self._model.embed_texts(distinct, batch_size=self._batch_size)
        number = {text: row for row, text in enumerate(distinct)}
        texts = [coded[[number[text] for text in texts]] for texts in phrases]
        padded = self._model.ground(tokens_BND, texts)
        parts = np.split(padded, np.cumsum([len(rows) for rows in texts])[:-1])
        frames = batch.frames[self._model.size]
        return np.concatenate([frame.from_padded(rows) for frame, rows in zip(frames, parts, strict=True)])

    def add(self, part: _Encoded) -> None:
        """Keeps the next batch."""
        self._parts.append(part)

    @torch.inference_mode()
    def finish(self, split: Split, items: Items) -> Features:
        """The features of the whole split; captions and class names are encoded here, each distinct text once."""
        captions = self._model.embed_texts(list(items.captions), batch_size=self._batch_size)
        parts = self._parts
        return Features(
            images_NE=np.concatenate([part.images for part in parts]),
            texts_TE=captions[items.caption_text],
            classes_CE=self._model.embed_texts(split.classes, batch_size=self._batch_size),
            regions={
                reader: np.concatenate([part.regions[reader] for part in parts]) for reader in self._model.readers
            },
            boxes=as_boxes(np.concatenate([part.boxes for part in parts])) if self._model.grounds else None,
        )
