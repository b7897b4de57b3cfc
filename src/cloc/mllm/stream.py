"""What tuning reads: endless, deterministic batches of conversations from the shards and their tables.

Streams, ranks and going on are those of pre-training (`cloc.data.streams`). What is asked about an image, and how,
depends on the seed, the epoch and the image alone; which conversations share a batch, on the streams and not on the
ranks.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cloc.boxes import Letterbox
from cloc.data.batches import Drawn
from cloc.data.dataset import Dataset, LabeledSample
from cloc.data.order import Purpose, SampleRandom, StreamOrder, random_for
from cloc.data.reading import Record, read_epoch
from cloc.data.schema import Shard
from cloc.data.shards import Sample
from cloc.data.streams import Places, Streams, StreamSettings
from cloc.data.transforms import Picture as EncodedPicture
from cloc.data.transforms import letterbox
from cloc.errors import DataError
from cloc.mllm.api import read_image
from cloc.mllm.chat import ChatBatch, ChatFormat, Encoded, collate
from cloc.mllm.foreign import ConversationStore, ForeignImage
from cloc.mllm.instructions import Facts, PhrasePool, facts_of, training_conversations

# Batches that are sorted by length together: less padding, and still random.
GROUP = 8


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
        raise _undecodable(key, error) from None
    return Picture(key, pixels_SS3, frame, facts_of(key, sample.captions, sample.regions, frame=frame))


def _undecodable(key: str, error: OSError) -> DataError:
    return DataError(f"image {key!r} cannot be decoded ({error}); ingest it again")


def stacked(pictures: Sequence[Picture]) -> Tensor:
    """Pixels (B, S, S, 3) of pictures that have been decoded."""
    return torch.stack([picture.pixels_SS3 for picture in pictures if picture.pixels_SS3 is not None])


@dataclass(frozen=True, kw_only=True)
class ChatSettings(StreamSettings):
    """How the batches are made.

    Attributes, besides those of `StreamSettings`:
        image_size: side of the network input, pixels.
        questions: conversations about an image at most.
        tasks: weights of what is asked, by name of a `Task`.
        region_tokens: whether a region token stands behind the boxes of questions.
        by_length: whether batches are of like length.
        decode: whether batches hold pixels.
    """

    image_size: int
    questions: int
    tasks: Mapping[str, float]
    region_tokens: bool
    by_length: bool = True
    decode: bool = True


@dataclass(frozen=True)
class Step:
    """What a rank learns from in a step: a batch, and the keys of its images in order."""

    batch: ChatBatch
    keys: Sequence[str]


# Rows of captions and of regions.
_Rows = tuple[Sequence[dict[str, Any]], Sequence[dict[str, Any]]]


class _ShardRows:
    """The labels of a shard as rows."""

    def __init__(self, dataset: Dataset, shard: Shard) -> None:
        self._captions, self._regions = dataset.rows("captions", shard), dataset.rows("regions", shard)

    def wants(self, key: str) -> bool:
        """Whether anything is known of an image."""
        return key in self._captions or key in self._regions

    def of(self, key: str) -> _Rows:
        """What is known of it."""
        return self._captions.get(key, ()), self._regions.get(key, ())


@dataclass(frozen=True)
class _Mark:
    """Where a rank stands: places of its streams at the beginning of a group, and batches of that group given out."""

    places: Places
    group: int
    dealt: int


@dataclass(frozen=True)
class _Row:
    """An image of a batch with its conversations; its pixels are loaded when the batch is made."""

    key: str
    encoded: Encoded
    load: Callable[[], Tensor]


class Mixed:
    """Items of instruction files that are mixed into the batches.

    Args:
        items: of the files.
        share: of a batch's images, in (0, 1).
        check: told of each image, by key and encoded image; raises DataError where it must not be trained on.
    """

    def __init__(self, items: ConversationStore, *, share: float, check: Callable[[str, bytes], None]) -> None:
        self.share = share
        self._items, self._check = items, check
        self._orders: dict[int, npt.NDArray[np.int64]] = {}

    def take(self, number: int, *, seed: int) -> ForeignImage:
        """The `number`-th item of an endless sequence, which goes through all of them again and again, in another order
        each time."""
        turn, place = divmod(number, len(self._items))
        if turn not in self._orders:
            self._orders = {old: order for old, order in self._orders.items() if old == turn - 1}
            self._orders[turn] = random_for(Purpose.MIXED, seed, turn).permutation(len(self._items))
        item = self._items[int(self._orders[turn][place])]
        self._check(item.key, item.image.read_bytes())
        return item


class ChatStreams(Streams[Step, Encoded]):
    """The batches of one rank.

    Each stream gives `GROUP` batches' samples at a time; its conversations are sorted by length, so that those of a
    batch are of like length in every stream.

    Args:
        dataset: with captions and regions.
        chat: how the decoder writes.
        pool: phrases of the corpus.
        settings: how they are made.
        keep: which images may be used, by key and encoded image.
        mixed: what takes a share of the batches, besides.

    Raises:
        ConfigError: the ranks do not share the streams, or these the batch, in equal parts.
        DataError: there are fewer images than a batch of all ranks takes.
    """

    _section = "adapter"
    _nothing = "nothing can be asked about any image (adapter.tasks); run captioning and grounding first"

    def __init__(
        self,
        dataset: Dataset,
        chat: ChatFormat,
        pool: PhrasePool,
        settings: ChatSettings,
        *,
        keep: Callable[[str, bytes], bool],
        mixed: Mixed | None = None,
    ) -> None:
        super().__init__(dataset, settings)
        self._mixed, self._each = mixed, GROUP * settings.global_batch // settings.all_streams
        self._mixed_each = min(max(1, round(mixed.share * self._each)), self._each - 1) if mixed else 0
        self._settings, self._chat, self._pool, self._keep = settings, chat, pool, keep
        self._group = self._dealt = 0

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "group": self._group, "dealt": self._dealt}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._group, self._dealt = int(state["group"]), int(state["dealt"])

    def _taken(self, tag: _Mark) -> None:
        self._places, self._group, self._dealt = tag.places, tag.group, tag.dealt

    def _identity(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "data": self._dataset.digest,
            "batch_size": settings.global_batch,
            "streams": settings.all_streams,
            "questions": settings.questions,
            "tasks": dict(settings.tasks),
            "region_tokens": settings.region_tokens,
            "by_length": settings.by_length,
            "seed": settings.seed,
            "buffer": settings.buffer,
            "mixed": self._mixed_each,
        }

    def _read(self, order: StreamOrder, *, start: int) -> Generator[Record[Encoded] | None, None, None]:
        random = SampleRandom(self._settings.seed)
        with closing(read_epoch(self._dataset, order, labels=_ShardRows, start=start)) as records:
            for record in records:
                usable = record is not None and self._keep(record.key, record.image)
                yield self._encoded(record, epoch=order.epoch, random=random) if record and usable else None

    def _encoded(self, record: Record[_Rows], *, epoch: int, random: SampleRandom) -> Record[Encoded] | None:
        """The record with its conversations; None where nothing can be asked."""
        settings, (captions, regions) = self._settings, record.labels
        sample = LabeledSample(Sample(record.key, record.image), tuple(captions), tuple(regions))
        asked = training_conversations(
            picture_of(sample, image_size=settings.image_size, decode=False).facts,
            tasks=settings.tasks,
            limit=settings.questions,
            region_tokens=settings.region_tokens,
            pool=self._pool,
            rng=random.of(epoch=epoch, shard=record.shard, index=record.index),
        )
        if not asked:
            return None
        image = record.image if settings.decode else b""
        return Record(record.key, record.shard, record.index, image, self._chat.encode(asked, key=record.key))

    def _made(self) -> Generator[tuple[Step, _Mark], None, None]:
        places, group, dealt = self._places, self._group, self._dealt
        with closing(self._tasks(self._each - self._mixed_each)) as tasks:
            for task in tasks:
                for number, rows in enumerate(self._batches(task.samples, group=group), start=1):
                    last = number == GROUP
                    after = _Mark(task.tag, group + 1, 0) if last else _Mark(places, group, number)
                    if number > dealt:
                        yield self._step(rows), after
                places, group, dealt = task.tag, group + 1, 0

    def _batches(self, samples: Sequence[Drawn[Encoded]], *, group: int) -> Iterator[list[_Row]]:
        """A group's batches, in random order: of each stream its part."""
        settings = self._settings
        streams, each = settings.own_streams, self._each - self._mixed_each
        size = settings.batch_size // len(streams)
        parts = [
            [*map(self._own_row, samples[place * each : (place + 1) * each]), *self._mixed_rows(stream, group)]
            for place, stream in enumerate(streams)
        ]
        for stream, part in zip(streams, parts, strict=True):
            random_for(Purpose.PART, settings.seed, group, stream).shuffle(part)
            if settings.by_length:
                part.sort(key=lambda row: len(row.encoded.ids))
        for index in random_for(Purpose.GROUP, settings.seed, group).permutation(GROUP):
            yield [row for part in parts for row in part[index * size : (index + 1) * size]]

    def _own_row(self, drawn: Drawn[Encoded]) -> _Row:
        record = drawn.record
        return _Row(record.key, record.labels, partial(self._pixels, record))

    def _mixed_rows(self, stream: int, group: int) -> Iterator[_Row]:
        """What a stream takes of the instruction files for a group: they are gone through in another order each time,
        shared out over the streams."""
        first = (group * self._settings.all_streams + stream) * self._mixed_each
        for number in range(first, first + self._mixed_each):
            assert self._mixed is not None
            item = self._mixed.take(number, seed=self._settings.seed)
            yield _Row(item.key, self._chat.encode(item.conversations, key=item.key), partial(self._seen, item))

    def _step(self, rows: Sequence[_Row]) -> Step:
        pixels = [row.load() for row in rows] if self._settings.decode else None
        pad_id = self._chat.tokenizer.pad_token_id
        return Step(collate(pixels, [row.encoded for row in rows], pad_id=pad_id), [row.key for row in rows])

    def _pixels(self, record: Record[Encoded]) -> Tensor:
        try:
            return torch.from_numpy(EncodedPicture(record.image).letterbox(self._settings.image_size)[0])
        except OSError as error:
            raise _undecodable(record.key, error) from None

    def _seen(self, item: ForeignImage) -> Tensor:
        return torch.from_numpy(letterbox(read_image(item.image), size=self._settings.image_size)[0])
