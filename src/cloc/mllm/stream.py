"""What tuning reads: an endless, deterministic stream of batches of questions from the shards and their regions.

Order, questions and wordings depend on the seed and the position alone. Nothing is held but a shuffle buffer of
encoded images and a few batches.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cloc.boxes import Letterbox
from cloc.data.dataset import Dataset, LabeledSample
from cloc.data.order import shuffled
from cloc.data.transforms import Picture as EncodedPicture
from cloc.errors import DataError
from cloc.mllm.chat import ChatBatch, ChatFormat, Encoded, collate
from cloc.mllm.instructions import Region, plain, regions_of, sampled_questions

# Batches that are sorted by length together: less padding, and still random.
_GROUP = 8


@dataclass(frozen=True)
class Picture:
    """One image of the data set, decoded, with its regions.

    Attributes:
        key: of the image.
        pixels_SS3: the network input, uint8.
        frame: map between the original image and the network input.
        regions: its regions.
    """

    key: str
    pixels_SS3: Tensor
    frame: Letterbox
    regions: list[Region]


def picture_of(sample: LabeledSample, *, image_size: int) -> Picture:
    """Decodes a sample. Raises DataError, naming the image, when it cannot be decoded."""
    try:
        pixels, frame = EncodedPicture(sample.sample.image).letterbox(image_size)
    except OSError as error:
        raise DataError(f"image {sample.sample.key!r} cannot be decoded ({error}); ingest it again") from None
    regions = regions_of(sample.regions, frame=frame)
    return Picture(sample.sample.key, torch.from_numpy(pixels), frame, regions)


@dataclass(frozen=True)
class StreamSettings:
    """How the stream is made.

    Attributes:
        image_size: side of the network input, pixels.
        batch_size: images a batch.
        questions: questions about an image at most.
        seed: of order, questions and wordings.
        buffer: samples (encoded) that are shuffled together.
    """

    image_size: int
    batch_size: int
    questions: int
    seed: int
    buffer: int = 2048


def batches(
    dataset: Dataset, chat: ChatFormat, settings: StreamSettings, *, keep: Callable[[LabeledSample], bool]
) -> Iterator[ChatBatch]:
    """Endless batches.

    Args:
        dataset: with regions.
        chat: how the decoder writes.
        settings: how the stream is made.
        keep: which samples may be used.

    Raises:
        DataError: no image has a usable region, an image cannot be decoded, or a question exceeds the context.
    """
    held: list[tuple[Tensor, Encoded]] = []
    size, pad_id = settings.batch_size, chat.tokenizer.pad_token_id
    for position, sample in enumerate(_usable(dataset, settings, keep)):
        rng = np.random.default_rng((settings.seed, position))
        picture = picture_of(sample, image_size=settings.image_size)
        turns = sampled_questions(picture.regions, limit=settings.questions, rng=rng)
        held.append((picture.pixels_SS3, chat.encode(turns, key=picture.key)))
        if len(held) == _GROUP * size:
            held.sort(key=lambda item: len(item[1].ids))
            for index in rng.permutation(_GROUP):
                part = held[index * size : (index + 1) * size]
                yield collate([pixels for pixels, _ in part], [ids for _, ids in part], pad_id=pad_id)
            held = []


def _usable(
    dataset: Dataset, settings: StreamSettings, keep: Callable[[LabeledSample], bool]
) -> Iterator[LabeledSample]:
    """Samples with a region that has a text, epoch after epoch, shards and samples shuffled."""
    epoch = 0
    while True:
        rng = np.random.default_rng((settings.seed, epoch))
        shards = dataset.manifest.shards
        order = (shards[index] for index in rng.permutation(len(shards)))
        stream = (sample for shard in order for sample in dataset.read(shard))
        found = False
        for sample in shuffled(stream, rng=rng, buffer=settings.buffer):
            if keep(sample) and any(plain(row["text"]) for row in sample.regions):
                found = True
                yield sample
        if not found:
            raise DataError(f"{dataset.regions.url}: no image has a region with a text; run grounding first")
        epoch += 1
