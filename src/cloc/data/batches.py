"""From encoded samples to a batch of tensors: one sample's pixels and labels, and their collation.

A sample's draws depend on the seed, the epoch and the sample, so that a batch is the same wherever it is made.
Shapes: B images, S side in pixels, M regions an image at most, R those of one image, U distinct region texts, T texts,
L tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cloc.boxes import BoxesXYXY, Letterbox
from cloc.config.schema import AugmentationConfig
from cloc.data.augmentation import Retouch, flipped, random_retouch, random_view
from cloc.data.buffers import Buffers
from cloc.data.join import Labels
from cloc.data.order import SampleRandom
from cloc.data.reading import Record
from cloc.data.transforms import Picture, PixelBox, Pixels
from cloc.errors import DataError

Tokenize = Callable[[list[str]], Tensor]
L = TypeVar("L")


@dataclass(frozen=True)
class Batch:
    """One rank's part of a step.

    Attributes:
        keys: of the B samples.
        pixels_BSS3: uint8.
        caption_ids_BL: token ids of the captions.
        boxes_BM4: xyxy in [0, 1] of the padded network input; zeros where absent.
        points_BM2: a point inside each box; zeros where absent.
        pointed_BM: which regions are prompted by their point instead of their box.
        present_BM: which regions are there.
        text_ids_UL: token ids of the distinct region texts; one empty text when there is no region.
        text_index_BM: which text describes each region; 0 where absent.
    """

    keys: tuple[str, ...]
    pixels_BSS3: Tensor
    caption_ids_BL: Tensor
    boxes_BM4: Tensor
    points_BM2: Tensor
    pointed_BM: Tensor
    present_BM: Tensor
    text_ids_UL: Tensor
    text_index_BM: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; out of pinned memory the copy does not wait."""
        return Batch(self.keys, **{name: x.to(device, non_blocking=True) for name, x in self.tensors().items()})

    def pinned(self) -> "Batch":
        """The batch in memory that a GPU reads by itself."""
        return Batch(self.keys, **{name: x.pin_memory() for name, x in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """All but the keys, by name."""
        return {name: value for name, value in vars(self).items() if name != "keys"}

    def chunks(self, size: int) -> list["Batch"]:
        """The batch in parts of `size` neighbouring images (the last may have fewer).

        Each has the texts of its own regions alone, in the order of the whole batch's; a part without any region has
        one of these that nothing names.
        """
        if size >= len(self.keys):
            return [self]
        return [self._part(slice(first, first + size)) for first in range(0, len(self.keys), size)]

    def _part(self, own: slice) -> "Batch":
        fields = {name: value if name == "text_ids_UL" else value[own] for name, value in vars(self).items()}
        present_BM, whole_BM = fields["present_BM"], fields["text_index_BM"]
        used_U, index_R = torch.unique(whole_BM[present_BM], return_inverse=True)
        text_index_BM = torch.zeros_like(whole_BM).masked_scatter(present_BM, index_R)
        text_ids_UL = self.text_ids_UL[used_U] if len(used_U) else self.text_ids_UL[:1]
        return Batch(**{**fields, "text_ids_UL": text_ids_UL, "text_index_BM": text_index_BM})


@dataclass(frozen=True)
class BatchSettings:
    """What a batch is made like.

    Attributes:
        image_size: S.
        batch_size: B.
        max_regions: M.
        alt_text_share: probability of the alt-text for caption where there is another one.
        point_share: probability of a point prompt.
        augmentation: random changes of the images.
        seed: of all draws.
    """

    image_size: int
    batch_size: int
    max_regions: int
    alt_text_share: float
    point_share: float
    augmentation: AugmentationConfig
    seed: int

    @property
    def pixels_shape(self) -> tuple[int, int, int, int]:
        """(B, S, S, 3)."""
        return self.batch_size, self.image_size, self.image_size, 3


@dataclass(frozen=True)
class Drawn(Generic[L]):
    """A record and the epoch in which it was drawn."""

    epoch: int
    record: Record[L]


class BatchMaker:
    """Decodes samples and collates them.

    Args:
        settings: what a batch is made like.
        tokenize: texts -> token ids (T, L).
    """

    def __init__(self, settings: BatchSettings, *, tokenize: Tokenize) -> None:
        self._settings, self._tokenize = settings, tokenize
        self._random, self._buffers = SampleRandom(settings.seed), Buffers(settings.pixels_shape)

    def make(self, samples: Sequence[Drawn[Labels]], *, pixels_BSS3: Pixels | None = None) -> Batch:
        """A batch of B samples.

        Args:
            samples: encoded, with their labels.
            pixels_BSS3: where to write the pixels, for workers; memory of its own unless given.

        Raises:
            DataError: an image cannot be decoded; names it.
        """
        if pixels_BSS3 is None:
            pixels_BSS3 = self._buffers.take()
        # One kind of work after another: between two decoded images, the little that is done about a sample's labels
        # would take four times as long, since nothing of it is left in the processor's caches.
        pictures = [_opened(sample.record) for sample in samples]
        examples = [self._named_example(sample, size=each.size) for sample, each in zip(samples, pictures, strict=True)]
        for sample, picture, example, out in zip(samples, pictures, examples, pixels_BSS3, strict=True):
            _draw(sample.record, picture, example, out=out)
        return self._collate(samples, examples, pixels_BSS3)

    def _named_example(self, sample: Drawn[Labels], *, size: tuple[int, int]) -> "_Example":
        try:
            return self._example(sample, size=size)
        except Exception as error:
            error.add_note(f"at sample {sample.record.key!r}")
            raise

    def _example(self, sample: Drawn[Labels], *, size: tuple[int, int]) -> "_Example":
        """What is to be shown of a sample, and its labels."""
        settings, record, labels = self._settings, sample.record, sample.record.labels
        rng = self._random.of(epoch=sample.epoch, shard=record.shard, index=record.index)
        caption = _choose_caption(labels, rng, alt_text_share=settings.alt_text_share)
        view = random_view(labels.boxes_R4, size=size, config=settings.augmentation, rng=rng)
        boxes_R4, texts = view.boxes_R4, labels.texts
        if view.kept_R is not None:
            texts = [texts[number] for number in view.kept_R]
        if len(texts) > settings.max_regions:
            chosen = rng.permutation(len(texts))[: settings.max_regions]
            boxes_R4, texts = boxes_R4[chosen], [texts[number] for number in chosen]
        retouch = random_retouch((caption, *texts), config=settings.augmentation, rng=rng)
        if retouch and retouch.flip:
            boxes_R4 = flipped(boxes_R4)
        left, top, right, bottom = view.crop or (0, 0, *size)
        frame = Letterbox(right - left, bottom - top, settings.image_size)
        return _Example(
            caption=caption,
            texts=texts,
            boxes_R4=frame.to_padded(boxes_R4),
            draws_R3=rng.random((len(texts), 3)),
            crop=view.crop,
            retouch=retouch,
        )

    def _collate(self, samples: Sequence[Drawn[Labels]], examples: Sequence["_Example"], pixels_BSS3: Pixels) -> Batch:
        settings, shape = self._settings, (len(examples), self._settings.max_regions)
        boxes_BM4, draws_BM3 = np.zeros((*shape, 4), np.float32), np.zeros((*shape, 3), np.float32)
        present_BM, text_index_BM = np.zeros(shape, np.bool_), np.zeros(shape, np.int64)
        distinct: dict[str, int] = {}
        for number, example in enumerate(examples):
            if count := len(example.texts):
                boxes_BM4[number, :count], draws_BM3[number, :count] = example.boxes_R4, example.draws_R3
                present_BM[number, :count] = True
                text_index_BM[number, :count] = [distinct.setdefault(text, len(distinct)) for text in example.texts]
        points_BM2 = boxes_BM4[..., :2] + draws_BM3[..., :2] * (boxes_BM4[..., 2:] - boxes_BM4[..., :2])
        return Batch(
            keys=tuple(sample.record.key for sample in samples),
            pixels_BSS3=torch.from_numpy(pixels_BSS3),
            caption_ids_BL=self._tokenize([example.caption for example in examples]),
            boxes_BM4=torch.from_numpy(boxes_BM4),
            points_BM2=torch.from_numpy(points_BM2),
            pointed_BM=torch.from_numpy((draws_BM3[..., 2] < settings.point_share) & present_BM),
            present_BM=torch.from_numpy(present_BM),
            text_ids_UL=self._tokenize(list(distinct) or [""]),
            text_index_BM=torch.from_numpy(text_index_BM),
        )


@dataclass(frozen=True)
class _Example:
    """One image's part of a batch, without its pixels.

    Attributes:
        caption: of the image.
        texts: of its chosen regions.
        boxes_R4: of these, in the padded network input.
        draws_R3: uniform in [0, 1): where the point of a region lies in its box, and whether the point is the prompt.
        crop, retouch: what is done to the pixels.
    """

    caption: str
    texts: Sequence[str]
    boxes_R4: BoxesXYXY
    draws_R3: npt.NDArray[np.float64]
    crop: PixelBox | None
    retouch: Retouch | None


def _opened(record: Record[Labels]) -> Picture:
    try:
        return Picture(record.image)
    except Exception as error:
        raise _undecodable(record, error) from None


def _draw(record: Record[Labels], picture: Picture, example: _Example, *, out: Pixels) -> None:
    try:
        picture.letterbox(out.shape[0], crop=example.crop, retouch=example.retouch, out=out)
    except Exception as error:
        raise _undecodable(record, error) from None


def _undecodable(record: Record[Labels], error: Exception) -> Exception:
    """What to raise. Decoders meet broken bytes with errors of any type: each means that this file is broken."""
    if isinstance(error, MemoryError):
        return error
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"image {record.key!r} cannot be decoded ({reason}); ingest it again")


def _choose_caption(labels: Labels, rng: np.random.Generator, *, alt_text_share: float) -> str:
    captions, alt_texts = labels.captions, labels.alt_texts
    draw = rng.random()
    pool = alt_texts if alt_texts and (not captions or draw < alt_text_share) else captions
    return pool[int(rng.integers(len(pool)))]
