"""A shard through the models: images stream, are encoded once by every model that lacks them, and are let go.

What is left of a shard by a model is small: an embedding an image, a text, and a box and reader, a box a phrase, and
three numbers a box that its tokens were asked for. Shapes: n images, U texts, Q boxes, P phrases of the shard, E
embedding width.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from cloc.boxes import BoxesXYXY, Letterbox, as_boxes
from cloc.data.transforms import decode, letterbox
from cloc.evaluation import coherence
from cloc.evaluation.cache import Arrays
from cloc.evaluation.models import EncodedBatch, EvaluatedModel
from cloc.evaluation.tasks import Task
from cloc.evaluation.truth import ImageTruth

_BOXES_PER_IMAGE = 8  # a batch of images ends early when it holds more boxes than this an image
_HEARTBEAT = 5.0  # seconds

Pixels = npt.NDArray[np.uint8]
Tell = Callable[[int], None]
T = TypeVar("T")


@dataclass(frozen=True)
class ShardFeatures:
    """What a model made of a task.

    Attributes:
        keys: of the images that could be decoded, in order.
        refused: (key, reason) of the others.
        sizes_n2: width and height of each image, pixels.
        images_nE, texts_UE: normalised embeddings of images and of `Task.texts`.
        regions: of the distinct boxes of each image, in order, by reader, (Q, E), normalised.
        coherence_Q3: see `coherence.measure`.
        boxes_P4: predicted box of every phrase, xyxy of the original image; (0, 4) for a model that finds none.
    """

    keys: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    sizes_n2: npt.NDArray[np.int64]
    images_nE: npt.NDArray[np.float32]
    texts_UE: npt.NDArray[np.float32]
    regions: Mapping[str, npt.NDArray[np.float32]]
    coherence_Q3: npt.NDArray[np.float64]
    boxes_P4: npt.NDArray[np.float32]

    def to_arrays(self) -> Arrays:
        """As the cache keeps it."""
        names = json.dumps({"keys": self.keys, "refused": self.refused}).encode()
        return {
            "names": np.frombuffer(names, dtype=np.uint8),
            "sizes": self.sizes_n2,
            "images": self.images_nE,
            "texts": self.texts_UE,
            "coherence": self.coherence_Q3,
            "boxes": self.boxes_P4,
            **{f"regions/{reader}": rows for reader, rows in self.regions.items()},
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> "ShardFeatures":
        """What `to_arrays` gave. Raises KeyError or ValueError for anything else."""
        names = json.loads(arrays["names"].tobytes())
        found = {name.partition("/")[2]: rows for name, rows in arrays.items() if name.startswith("regions/")}
        return cls(
            keys=tuple(names["keys"]),
            refused=tuple((key, reason) for key, reason in names["refused"]),
            sizes_n2=arrays["sizes"],
            images_nE=arrays["images"],
            texts_UE=arrays["texts"],
            regions=found,
            coherence_Q3=arrays["coherence"],
            boxes_P4=arrays["boxes"],
        )


@contextmanager
def encoders(device: torch.device, *, threads: int = 0) -> Iterator[Executor]:
    """Threads that encode, one a core (or as many as said) with one torch thread each; a single one feeds a GPU.

    Whole batches in parallel need no barrier inside an operation: two to three times faster than torch's own threads
    where the cores are shared with other work, and no slower where they are not.
    """
    if device.type == "cuda":
        with ThreadPoolExecutor(1) as pool:
            yield pool
        return
    before, count = torch.get_num_threads(), threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def encode(
    task: Task, models: Sequence[EvaluatedModel], pool: Executor, *, batch_size: int, tell: Tell = lambda images: None
) -> list[ShardFeatures]:
    """A task's features by each of some models; images are decoded once.

    Args:
        task: the images.
        models: the models.
        pool: encodes (see `encoders`).
        batch_size: images a batch.
        tell: is told of images that are done, and of 0 now and then.

    Raises:
        DataError: the images cannot be read.
    """
    seen = _Seen()
    texts = task.texts
    collectors = [_Collector(model, texts, batch_size=batch_size) for model in models]
    for future in [pool.submit(collector.encode_texts) for collector in collectors]:
        _result(future, tell)
    pending: deque[tuple[int, list[Future[_Encoded]]]] = deque()

    def drain(keep: int) -> None:
        while len(pending) > keep:
            images, futures = pending.popleft()
            for collector, future in zip(collectors, futures, strict=True):
                collector.parts.append(_result(future, tell))
            tell(images)

    for batch in _ahead(_batches(task, models, seen, batch_size=batch_size)):
        pending.append((len(batch.truths), [pool.submit(collector.encode, batch) for collector in collectors]))
        drain(keep=1)
    drain(keep=0)
    return [collector.features(seen) for collector in collectors]


def _result(future: Future[T], tell: Tell) -> T:
    while not wait([future], timeout=_HEARTBEAT).done:
        tell(0)
    return future.result()


@dataclass
class _Seen:
    """Which images were decoded, and which not."""

    keys: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Batch:
    """Images made ready: pixels by side of the network input, and the maps of their boxes."""

    truths: list[ImageTruth]
    images: dict[int, Pixels]
    frames: dict[int, list[Letterbox]]
    crops: dict[int, Pixels]


def _ahead(batches: Iterator[_Batch]) -> Iterator[_Batch]:
    """The batches, the next one made in a thread while this one is encoded."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = thread.submit(next, batches, None)
            yield batch


def _batches(task: Task, models: Sequence[EvaluatedModel], seen: _Seen, *, batch_size: int) -> Iterator[_Batch]:
    """Decoded, letterboxed and cropped images; fills `seen` as it goes."""
    sizes = {model.size: False for model in models}
    for model in models:
        sizes[model.size] |= "crop" in model.readers
    pending = _Pending(sizes)
    for key, body in task.images.read():
        truth = ImageTruth() if task.truth is None else task.truth.get(key)
        if truth is None:
            continue
        try:
            image = decode(body)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            seen.refused.append((key, f"{type(error).__name__}: {error}"[:200]))
            continue
        seen.keys.append(key)
        seen.sizes.append(image.size)
        pending.add(image, truth)
        if len(pending.truths) >= batch_size or pending.boxes >= batch_size * _BOXES_PER_IMAGE:
            yield pending.batch()
            pending = _Pending(sizes)
    if pending.truths:
        yield pending.batch()


class _Pending:
    """A batch in the making.

    Args:
        sizes: sides of network inputs, and whether crops are read at each.
    """

    def __init__(self, sizes: Mapping[int, bool]) -> None:
        self.truths: list[ImageTruth] = []
        self.boxes = 0
        self._sizes = sizes
        self._images: dict[int, list[Pixels]] = {size: [] for size in sizes}
        self._crops: dict[int, list[Pixels]] = {size: [] for size in sizes}
        self._frames: dict[int, list[Letterbox]] = {size: [] for size in sizes}

    def add(self, image: Image.Image, truth: ImageTruth) -> None:
        """Keeps what the network sees of an image and of its boxes."""
        self.truths.append(truth)
        self.boxes += len(truth.boxes)
        crops = [crop(image, box) for box in truth.boxes] if any(self._sizes.values()) else []
        for size, cropped in self._sizes.items():
            pixels, frame = letterbox(image, size=size)
            self._images[size].append(pixels)
            self._frames[size].append(frame)
            self._crops[size] += [letterbox(part, size=size)[0] for part in crops if cropped]

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
    """A batch through one model; see `ShardFeatures`."""

    images: npt.NDArray[np.float32]
    regions: Mapping[str, npt.NDArray[np.float32]]
    coherence: npt.NDArray[np.float64]
    boxes: BoxesXYXY


class _Collector:
    """One model's features of a task, batch after batch. `encode` runs in any thread; `parts` are in order."""

    def __init__(self, model: EvaluatedModel, texts: Sequence[str], *, batch_size: int) -> None:
        self._model, self._texts, self._batch_size = model, texts, batch_size
        self._numbers = {text: number for number, text in enumerate(texts)}
        self._texts_UE = np.zeros((0, 0), dtype=np.float32)
        self.parts: list[_Encoded] = []

    @torch.inference_mode()
    def encode_texts(self) -> None:
        """Encodes all texts, each once: before the images, whose phrases are among them."""
        self._texts_UE = self._model.embed_texts(self._texts, batch_size=self._batch_size)

    @torch.inference_mode()
    def encode(self, batch: _Batch) -> _Encoded:
        """Everything that needs the batch's pixels or tokens."""
        model, frames = self._model, batch.frames[self._model.size]
        encoded = model.encode_images(batch.images[model.size], batch_size=self._batch_size)
        boxes = [as_boxes(list(truth.boxes)) for truth in batch.truths]
        padded = [frame.to_padded(rows) for frame, rows in zip(frames, boxes, strict=True)]
        regions: dict[str, npt.NDArray[np.float32]] = {
            reader: model.embed_images(batch.crops[model.size], batch_size=self._batch_size)
            if reader == "crop"
            else model.read_regions(encoded, padded, reader)
            for reader in model.readers
        }
        found = self._ground(encoded, batch) if model.grounds else np.zeros((0, 4))
        return _Encoded(encoded.embeds, regions, self._coherence(encoded, boxes, frames), found)

    def _coherence(
        self, encoded: EncodedBatch, boxes: Sequence[BoxesXYXY], frames: Sequence[Letterbox]
    ) -> npt.NDArray[np.float64]:
        model = self._model.model
        grid = (model.grid, model.grid)
        patches_BGD = encoded.tokens_BND[:, model.prefix_tokens :].float().cpu().numpy()
        parts = [
            coherence.measure(patches_GD, rows, grid=grid, frame=frame)
            for patches_GD, rows, frame in zip(patches_BGD, boxes, frames, strict=True)
            if len(rows)
        ]
        return np.concatenate([np.zeros((0, len(coherence.COLUMNS))), *parts])

    def _ground(self, encoded: EncodedBatch, batch: _Batch) -> BoxesXYXY:
        """Boxes of the batch's phrases in the original images."""
        texts = [
            self._texts_UE[[self._numbers[truth.regions[place].text] for place in truth.phrases]]
            for truth in batch.truths
        ]
        padded = self._model.ground(encoded.tokens_BND, texts)
        parts = np.split(padded, np.cumsum([len(rows) for rows in texts])[:-1])
        frames = batch.frames[self._model.size]
        return np.concatenate([frame.from_padded(rows) for frame, rows in zip(frames, parts, strict=True)])

    def features(self, seen: _Seen) -> ShardFeatures:
        """The features of the whole task."""
        width = self._model.model.embed_dim
        return ShardFeatures(
            keys=tuple(seen.keys),
            refused=tuple(seen.refused),
            sizes_n2=np.array(seen.sizes, dtype=np.int64).reshape(-1, 2),
            images_nE=_joined((part.images for part in self.parts), width=width),
            texts_UE=self._texts_UE,
            regions={
                reader: _joined((part.regions[reader] for part in self.parts), width=width)
                for reader in self._model.readers
            },
            coherence_Q3=np.concatenate([np.zeros((0, 3)), *(part.coherence for part in self.parts)]),
            boxes_P4=_joined((part.boxes for part in self.parts), width=4),
        )


def _joined(parts: Iterable[npt.NDArray[np.floating]], *, width: int) -> npt.NDArray[np.float32]:
    return np.concatenate([np.zeros((0, width)), *parts]).astype(np.float32)
