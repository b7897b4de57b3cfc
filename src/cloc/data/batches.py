"""From encoded samples to a batch of tensors: one sample's pixels and labels, and their collation.

A sample's draws depend on the seed, the epoch and the sample, so that a batch is the same wherever it is made.
Shapes: B images, S side in pixels, M regions an image at most, R those of one image, U distinct region texts, T texts,
L tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cloc.boxes import BoxesXYXY, as_boxes
from cloc.config.schema import AugmentationConfig
from cloc.data.augmentation import Retouch, flipped, random_view
from cloc.data.join import Labels
from cloc.data.order import Purpose, random_for
from cloc.data.reading import Record
from cloc.data.transforms import Picture, Pixels
from cloc.errors import DataError

Tokenize = Callable[[list[str]], Tensor]


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


@dataclass(frozen=True)
class Drawn:
    """A record and the epoch in which it was drawn."""

    epoch: int
    record: Record


class BatchMaker:
    """Decodes samples and collates them.

    Args:
        settings: what a batch is made like.
        tokenize: texts -> token ids (T, L).
    """

    def __init__(self, settings: BatchSettings, *, tokenize: Tokenize) -> None:
        self._settings, self._tokenize = settings, tokenize

    def make(self, samples: Sequence[Drawn], *, pixels_BSS3: Pixels | None = None) -> Batch:
        """A batch of B samples.

        Args:
            samples: encoded, with their labels.
            pixels_BSS3: where to write the pixels; new memory unless given.

        Raises:
            DataError: an image cannot be decoded; names it.
        """
        settings = self._settings
        shape = (len(samples), settings.max_regions)
        if pixels_BSS3 is None:
            pixels_BSS3 = np.empty((len(samples), settings.image_size, settings.image_size, 3), dtype=np.uint8)
        boxes_BM4, points_BM2 = np.zeros((*shape, 4), np.float32), np.zeros((*shape, 2), np.float32)
        pointed_BM, present_BM = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
        text_index_BM = np.zeros(shape, np.int64)
        captions, distinct = list[str](), dict[str, int]()
        for number, sample in enumerate(samples):
            with _named(sample.record.key):
                example = self._example(sample, out=pixels_BSS3[number])
            count = len(example.texts)
            captions.append(example.caption)
            boxes_BM4[number, :count], points_BM2[number, :count] = example.boxes_R4, example.points_R2
            pointed_BM[number, :count], present_BM[number, :count] = example.pointed_R, True
            text_index_BM[number, :count] = [distinct.setdefault(text, len(distinct)) for text in example.texts]
        return Batch(
            pixels_BSS3=torch.from_numpy(pixels_BSS3),
            caption_ids_BL=self._tokenize(captions),
            boxes_BM4=torch.from_numpy(boxes_BM4),
            points_BM2=torch.from_numpy(points_BM2),
            pointed_BM=torch.from_numpy(pointed_BM),
            present_BM=torch.from_numpy(present_BM),
            text_ids_UL=self._tokenize(list(distinct) or [""]),
            text_index_BM=torch.from_numpy(text_index_BM),
        )

    def _example(self, sample: Drawn, *, out: Pixels) -> "_Example":
        """Writes one image's pixels and returns the rest of it."""
        settings, record, labels = self._settings, sample.record, sample.record.labels
        augmentation = settings.augmentation
        rng = random_for(Purpose.SAMPLE, settings.seed, sample.epoch, record.shard, record.index)
        caption = _choose_caption(labels, rng, alt_text_share=settings.alt_text_share)
        with _decoding(record.key):
            picture = Picture(record.image)
        size = picture.width, picture.height
        view = random_view(as_boxes(labels.boxes_R4), size=size, config=augmentation, rng=rng)
        chosen = np.arange(len(view.kept_R))
        if len(chosen) > settings.max_regions:
            chosen = rng.permutation(chosen)[: settings.max_regions]
        texts = [labels.texts[number] for number in view.kept_R[chosen]]
        retouch = Retouch.random((caption, *texts), config=augmentation, rng=rng)
        boxes_R4 = view.boxes_R4[chosen]
        if retouch and retouch.flip:
            boxes_R4 = flipped(boxes_R4)
        with _decoding(record.key):
            _, frame = picture.letterbox(settings.image_size, crop=view.crop, retouch=retouch, out=out)
        boxes_R4 = frame.to_padded(boxes_R4)
        places_R2 = rng.random((len(texts), 2))
        return _Example(
            caption=caption,
            texts=texts,
            boxes_R4=boxes_R4,
            points_R2=boxes_R4[:, :2] + places_R2 * (boxes_R4[:, 2:] - boxes_R4[:, :2]),
            pointed_R=rng.random(len(texts)) < settings.point_share,
        )


@dataclass(frozen=True)
class _Example:
    """One image's part of a batch, without its pixels."""

    caption: str
    texts: Sequence[str]
    boxes_R4: BoxesXYXY
    points_R2: npt.NDArray[np.floating]
    pointed_R: npt.NDArray[np.bool_]


@contextmanager
def _named(key: str) -> Iterator[None]:
    """A defect that shows at one sample names it."""
    try:
        yield
    except Exception as error:
        error.add_note(f"at sample {key!r}")
        raise


@contextmanager
def _decoding(key: str) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        # Decoders meet broken bytes with errors of any type; each means that this file cannot be decoded.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"image {key!r} cannot be decoded ({reason}); ingest it again") from None


def _choose_caption(labels: Labels, rng: np.random.Generator, *, alt_text_share: float) -> str:
    captions, alt_texts = labels.captions, labels.alt_texts
    draw = rng.random()
    pool = alt_texts if alt_texts and (not captions or draw < alt_text_share) else captions
    return pool[int(rng.integers(len(pool)))]
