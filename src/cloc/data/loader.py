"""What training reads: an endless, deterministic stream of batches from the shards and their tables.

Order and sampling depend on the seed, the rank and the position alone, so that a stream can be continued at any
position. Shapes: B images, S side in pixels, M regions an image, U distinct region texts.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from cloc.data.dataset import Dataset, LabeledSample
from cloc.data.transforms import decode, letterbox
from cloc.errors import DataError

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """One rank's part of a step.

    Attributes:
        pixels_BSS3: uint8.
        caption_ids_BL: token ids of the captions.
        boxes_BM4: xyxy in [0, 1] of the padded network input; zeros where absent.
        points_BM2: a point inside each box; zeros where absent.
        pointed_BM: which regions are prompted by their point instead of their box.
        present_BM: which regions are there.
        text_ids_UL: token ids of the distinct region texts; one empty text when there is no region.
        text_index_BM: which text describes each region; 0 where absent.
    """

    pixels_BSS3: Tensor
    caption_ids_BL: Tensor
    boxes_BM4: Tensor
    points_BM2: Tensor
    pointed_BM: Tensor
    present_BM: Tensor
    text_ids_UL: Tensor
    text_index_BM: Tensor


@dataclass(frozen=True)
class LoaderSettings:
    """How the stream is made.

    Attributes:
        image_size: S.
        batch_size: B of this rank.
        max_regions: M.
        point_share: probability of a point prompt.
        alt_text_share: probability of the alt-text for caption where there is another one.
        seed: of order and sampling.
        rank, world_size: of the process.
        buffer: samples (encoded) that are shuffled together.
    """

    image_size: int
    batch_size: int
    max_regions: int
    alt_text_share: float
    seed: int
    point_share: float = 0.0
    rank: int = 0
    world_size: int = 1
    buffer: int = 2048


@dataclass(frozen=True)
class _Example:
    pixels_SS3: Tensor
    caption: str
    boxes_R4: Tensor
    points_R2: Tensor
    pointed_R: Tensor
    texts: list[str]


class TrainLoader:
    """The stream of one rank.

    Args:
        dataset: the labelled data set.
        settings: how the stream is made.
        tokenize: texts -> token ids (T, L).
    """

    def __init__(self, dataset: Dataset, settings: LoaderSettings, *, tokenize: Callable[[list[str]], Tensor]) -> None:
        self._dataset, self._settings, self._tokenize = dataset, settings, tokenize
        self.unusable = 0
        if dataset.manifest.images < settings.batch_size * settings.world_size:
            raise DataError(
                f"{dataset.images.url}: {dataset.manifest.images} images are fewer than a batch of "
                f"{settings.batch_size * settings.world_size}; lower train.batch_size"
            )

    def batches(self, *, skip: int = 0) -> Iterator[Batch]:
        """Endless batches, from batch number `skip` on."""
        samples = self._usable(self._samples())
        position = skip * self._settings.batch_size
        for _ in range(position):
            next(samples)
        pending: list[_Example] = []
        for sample in samples:
            rng = np.random.default_rng((self._settings.seed, self._settings.rank, position))
            position += 1
            pending.append(self._example(sample, rng))
            if len(pending) == self._settings.batch_size:
                yield self._collate(pending)
                pending = []

    def _samples(self) -> Iterator[LabeledSample]:
        """This rank's samples, epoch after epoch, shards and samples shuffled."""
        settings, shards = self._settings, self._dataset.manifest.shards
        by_shard = len(shards) >= settings.world_size
        epoch = 0
        while True:
            rng = np.random.default_rng((settings.seed, epoch))
            order = [shards[index] for index in rng.permutation(len(shards))]
            own = order[settings.rank :: settings.world_size] if by_shard else order
            stream = (sample for shard in own for sample in self._dataset.read(shard))
            if not by_shard:
                stream = (s for number, s in enumerate(stream) if number % settings.world_size == settings.rank)
            yield from shuffled(stream, rng=rng, buffer=settings.buffer)
            epoch += 1

    def _usable(self, samples: Iterator[LabeledSample]) -> Iterator[LabeledSample]:
        """Samples with a caption; the others are counted, and too many in a row mean that nothing will come."""
        missing = 0
        for sample in samples:
            if sample.captions:
                missing = 0
                yield sample
                continue
            self.unusable += 1
            missing += 1
            if missing > self._dataset.manifest.images:
                raise DataError(f"{self._dataset.captions.url}: no image has a caption; run captioning first")

    def _example(self, sample: LabeledSample, rng: np.random.Generator) -> _Example:
        size = self._settings.image_size
        try:
            image = decode(sample.sample.image, at_least=size)
        except OSError as error:
            raise DataError(f"image {sample.sample.key!r} cannot be decoded ({error}); ingest it again") from None
        pixels, frame = letterbox(image, size=size)
        rows = list(sample.regions)
        if len(rows) > self._settings.max_regions:
            rows = [rows[index] for index in rng.choice(len(rows), self._settings.max_regions, replace=False)]
        boxes = torch.from_numpy(
            frame.to_padded([[row["x1"], row["y1"], row["x2"], row["y2"]] for row in rows])
        ).float()
        caption = _choose_caption(sample, rng, alt_text_share=self._settings.alt_text_share)
        places = torch.from_numpy(rng.random((len(rows), 2))).float()
        return _Example(
            pixels_SS3=torch.from_numpy(pixels.copy()),
            caption=caption,
            boxes_R4=boxes,
            points_R2=boxes[:, :2] + places * (boxes[:, 2:] - boxes[:, :2]),
            pointed_R=torch.from_numpy(rng.random(len(rows)) < self._settings.point_share),
            texts=[row["text"] for row in rows],
        )

    def _collate(self, examples: list[_Example]) -> Batch:
        shape = (len(examples), self._settings.max_regions)
        boxes_BM4, points_BM2 = torch.zeros(*shape, 4), torch.zeros(*shape, 2)
        present_BM, pointed_BM = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
        text_index_BM = torch.zeros(shape, dtype=torch.long)
        distinct: dict[str, int] = {}
        for number, example in enumerate(examples):
            count = len(example.texts)
            boxes_BM4[number, :count] = example.boxes_R4
            points_BM2[number, :count], pointed_BM[number, :count] = example.points_R2, example.pointed_R
            present_BM[number, :count] = True
            for place, text in enumerate(example.texts):
                text_index_BM[number, place] = distinct.setdefault(text, len(distinct))
        return Batch(
            pixels_BSS3=torch.stack([example.pixels_SS3 for example in examples]),
            caption_ids_BL=self._tokenize([example.caption for example in examples]),
            boxes_BM4=boxes_BM4,
            points_BM2=points_BM2,
            pointed_BM=pointed_BM,
            present_BM=present_BM,
            text_ids_UL=self._tokenize(list(distinct) or [""]),
            text_index_BM=text_index_BM,
        )


def _choose_caption(sample: LabeledSample, rng: np.random.Generator, *, alt_text_share: float) -> str:
    alt_texts = [row["text"] for row in sample.captions if row["kind"] == "alt_text"]
    captions = [row["text"] for row in sample.captions if row["kind"] != "alt_text"]
    draw = rng.random()
    pool = alt_texts if alt_texts and (not captions or draw < alt_text_share) else captions
    return str(pool[rng.integers(len(pool))])


def shuffled(items: Iterable[T], *, rng: np.random.Generator, buffer: int) -> Iterator[T]:
    """The items in random order, holding at most `buffer` of them."""
    held: list[T] = []
    for item in items:
        if len(held) < buffer:
            held.append(item)
            continue
        place = int(rng.integers(buffer))
        held[place], item = item, held[place]
        yield item
    for place in rng.permutation(len(held)):
        yield held[place]
