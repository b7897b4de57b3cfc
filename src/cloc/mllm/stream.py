"""What tuning reads: an endless, deterministic stream of batches of conversations from the shards and their tables.

Order, questions and wordings depend on the seed and the position alone. Nothing is held but a shuffle buffer of
encoded images and a few batches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from cloc.mllm.instructions import Facts, PhrasePool, facts_of, training_conversations

# Batches that are sorted by length together: less padding, and still random.
_GROUP = 8


@dataclass(frozen=True)
class Picture:
    """One image of the data set, decoded, with what is known of it.

    Attributes:
        key: of the image.
        pixels_SS3: the network input, uint8; None where it was not decoded.
        frame: map between the original image and the network input.
        facts: its captions and regions.
    """

    key: str
    pixels_SS3: Tensor | None
    frame: Letterbox
    facts: Facts


def picture_of(sample: LabeledSample, *, image_size: int, decode: bool = True) -> Picture:
    """Reads a sample.

    Args:
        sample: encoded, with its rows.
        image_size: side of the network input, pixels.
        decode: whether its pixels are wanted; else its header alone is read.

    Raises:
        DataError: it cannot be decoded; names the image.
    """
    key, pixels_SS3 = sample.sample.key, None
    try:
        image = EncodedPicture(sample.sample.image)
        frame = Letterbox(*image.size, image_size)
        if decode:
            pixels_SS3 = torch.from_numpy(image.letterbox(image_size)[0])
    except OSError as error:
        raise DataError(f"image {key!r} cannot be decoded ({error}); ingest it again") from None
    return Picture(key, pixels_SS3, frame, facts_of(key, sample.captions, sample.regions, frame=frame))


def stacked(pictures: Sequence[Picture]) -> Tensor:
    """Pixels (B, S, S, 3) of pictures that have been decoded."""
    return torch.stack([picture.pixels_SS3 for picture in pictures if picture.pixels_SS3 is not None])


@dataclass(frozen=True)
class StreamSettings:
    """How the stream is made.

    Attributes:
        image_size: side of the network input, pixels.
        batch_size: images a batch.
        questions: conversations about an image at most.
        tasks: weights of what is asked, by name of a `Task`.
        region_tokens: whether a region token stands behind the boxes of questions.
        seed: of order, questions and wordings.
        by_length: whether batches are of like length.
        decode: whether batches hold pixels.
        buffer: samples (encoded) that are shuffled together.
    """

    image_size: int
    batch_size: int
    questions: int
    tasks: Mapping[str, float]
    region_tokens: bool
    seed: int
    by_length: bool = True
    decode: bool = True
    buffer: int = 2048


@dataclass(frozen=True)
class Step:
    """What a step learns from: a batch, and the keys of its images in order."""

    batch: ChatBatch
    keys: Sequence[str]


def batches(
    dataset: Dataset,
    chat: ChatFormat,
    pool: PhrasePool,
    settings: StreamSettings,
    *,
    keep: Callable[[LabeledSample], bool],
) -> Iterator[Step]:
    """Endless batches.

    Args:
        dataset: with captions and regions.
        chat: how the decoder writes.
        pool: phrases of the corpus.
        settings: how the stream is made.
        keep: which samples may be used.

    Raises:
        DataError: nothing can be asked about any image, an image cannot be decoded, or a conversation exceeds the
            context.
    """
    held = list[tuple[Picture, Encoded]]()
    size, pad_id = settings.batch_size, chat.tokenizer.pad_token_id
    for position, sample in enumerate(_samples(dataset, settings, keep)):
        rng = np.random.default_rng((settings.seed, position))
        picture = picture_of(sample, image_size=settings.image_size, decode=settings.decode)
        asked = training_conversations(
            picture.facts,
            tasks=settings.tasks,
            limit=settings.questions,
            region_tokens=settings.region_tokens,
            pool=pool,
            rng=rng,
        )
        if asked:
            held.append((picture, chat.encode(asked, key=picture.key)))
        elif not held and position > dataset.manifest.images:
            raise DataError(
                f"{dataset.regions.url}: nothing can be asked about any image (adapter.tasks); run captioning and "
                "grounding first"
            )
        if len(held) == _GROUP * size:
            yield from _dealt(held, settings, pad_id=pad_id, rng=rng)
            held.clear()


def _dealt(
    held: Sequence[tuple[Picture, Encoded]], settings: StreamSettings, *, pad_id: int, rng: np.random.Generator
) -> Iterator[Step]:
    """A group's batches, in random order."""
    size = settings.batch_size
    ordered = sorted(held, key=lambda item: len(item[1].ids)) if settings.by_length else list(held)
    for index in rng.permutation(len(held) // size):
        part = ordered[index * size : (index + 1) * size]
        pixels = [picture.pixels_SS3 for picture, _ in part if picture.pixels_SS3 is not None]
        batch = collate(pixels if settings.decode else None, [encoded for _, encoded in part], pad_id=pad_id)
        yield Step(batch, [picture.key for picture, _ in part])


def _samples(
    dataset: Dataset, settings: StreamSettings, keep: Callable[[LabeledSample], bool]
) -> Iterator[LabeledSample]:
    """Samples that may be used, epoch after epoch, shards and samples shuffled."""
    epoch = 0
    while True:
        rng = np.random.default_rng((settings.seed, epoch))
        shards = dataset.manifest.shards
        order = (shards[index] for index in rng.permutation(len(shards)))
        stream = (sample for shard in order for sample in dataset.read(shard))
        found = False
        for sample in shuffled(stream, rng=rng, buffer=settings.buffer):
            if keep(sample) and (sample.regions or sample.captions):
                found = True
                yield sample
        if not found:
            raise DataError(f"{dataset.regions.url}: no image has a caption or a region; run grounding first")
        epoch += 1
