"""Streams of samples: endless, deterministic, shared out over ranks, and able to go on from any position.

A global batch takes as many samples of each of S streams, in order; a rank of W makes the part of S / W neighbouring
ones. What is made of the samples is another module's matter (`data.loader`).
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from cloc.data.batches import Drawn
from cloc.data.dataset import Dataset
from cloc.data.decoding import Task
from cloc.data.order import StreamOrder
from cloc.data.prefetch import prefetched
from cloc.data.reading import Record
from cloc.errors import ConfigError, DataError

B = TypeVar("B")
L = TypeVar("L")
_VERSION = 2
_AHEAD = 2  # batches that wait to be taken
_TOGETHER = 16  # streams that are drawn from at the same time


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """How samples are drawn.

    Attributes:
        batch_size: images of a batch of this rank.
        seed: of order and sampling.
        rank, world_size: of the process.
        streams: that a global batch is drawn from; 0 takes one a rank.
        buffer: samples (encoded) of a stream that are shuffled together.
    """

    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    streams: int = 0
    buffer: int = 2048

    @property
    def global_batch(self) -> int:
        """Images of a batch of all ranks."""
        return self.batch_size * self.world_size

    @property
    def all_streams(self) -> int:
        """Number of streams of all ranks."""
        return self.streams or self.world_size

    @property
    def own_streams(self) -> range:
        """The streams of this rank."""
        own = self.all_streams // self.world_size
        return range(self.rank * own, (self.rank + 1) * own)


def check_division(*, batch_size: int, streams: int, processes: int, section: str = "train") -> None:
    """Checks that streams share the batch, and processes the streams, in equal parts.

    Args:
        batch_size: images of a batch of all ranks.
        streams: that it is drawn from; 0 takes one a process.
        processes: ranks.
        section: of the settings that has the batch size.

    Raises:
        ConfigError: they do not.
    """
    count = streams or processes
    if count % processes:
        fitting = [number for number in range(1, count + 1) if count % number == 0]
        raise ConfigError(
            f"train.streams: {processes} processes do not divide {count} streams; start {_listed(fitting)} processes "
            f"(train.processes x train.nodes), or set train.streams of a new run to a multiple of {processes}"
        )
    if batch_size % count:
        what = f"{count} streams (train.streams)" if streams else f"{processes} processes"
        near = max(1, round(batch_size / count)) * count
        raise ConfigError(
            f"{section}.batch_size {batch_size} is not divisible by {what}; set it to {near}, for example"
        )


def check_amount(dataset: Dataset, *, batch_size: int, section: str = "train") -> None:
    """Raises DataError when there are fewer images than a batch of all ranks takes."""
    if dataset.manifest.images < batch_size:
        raise DataError(
            f"{dataset.images.url}: {dataset.manifest.images} images are fewer than a batch of {batch_size}; lower "
            f"{section}.batch_size"
        )


def _listed(numbers: Sequence[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last


def joined(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The state of all streams, from `TrainLoader.state_dict` of every rank in any order.

    Raises:
        DataError: they are not of the same stream, or a stream is missing.
    """
    first, *others = states
    if any(other["version"] != first["version"] or other["of"] != first["of"] for other in others):
        raise DataError("loader state: the ranks read with different settings or data; start them alike")
    places = sorted((place for state in states for place in state["streams"]), key=lambda place: int(place["stream"]))
    if [place["stream"] for place in places] != list(range(streams_of(first))):
        raise DataError(f"loader state: the ranks do not hold each of {streams_of(first)} streams once")
    return {**first, "streams": places}


def streams_of(state: Mapping[str, Any]) -> int:
    """Number of streams of a state."""
    return int(state["of"]["streams"])


def unusable_of(state: Mapping[str, Any]) -> int:
    """Samples without a caption that have been left out, of the streams that the state holds."""
    return sum(int(place["unusable"]) for place in state["streams"])


@dataclass(frozen=True)
class Place:
    """Where a stream stands.

    Attributes:
        epoch: counted from 0.
        position: samples of the epoch that have been passed, whether they could be used or not.
        unusable: samples without a caption that have been passed in all epochs.
    """

    epoch: int = 0
    position: int = 0
    unusable: int = 0


Places = tuple[Place, ...]  # of a rank's streams


class Streams(ABC, Generic[B, L]):
    """The streams of one rank, and the batches that a subclass makes of them.

    Args:
        dataset: the labelled data set.
        settings: how they are drawn.

    Raises:
        ConfigError: the ranks do not share the streams, or these the batch, in equal parts.
        DataError: there are fewer images than a batch of all ranks takes.
    """

    _section = "train"
    _nothing = "no image has a caption; run captioning first"  # what is wrong where no sample can be used

    def __init__(self, dataset: Dataset, settings: StreamSettings) -> None:
        batch_size, ranks = settings.global_batch, settings.world_size
        check_division(batch_size=batch_size, streams=settings.streams, processes=ranks, section=self._section)
        self._dataset, self._shares = dataset, settings
        self._counts = [shard.images for shard in dataset.manifest.shards]
        self._places = tuple(Place() for _ in settings.own_streams)
        check_amount(dataset, batch_size=batch_size, section=self._section)

    @abstractmethod
    def _made(self) -> Generator[tuple[B, Any], None, None]:
        """Endless batches from where the streams stand, each with what `_taken` needs."""

    @abstractmethod
    def _read(self, order: StreamOrder, *, start: int) -> Generator[Record[L] | None, None, None]:
        """The samples of an epoch; None for one that cannot be used."""

    def _taken(self, tag: Any) -> None:
        """Told of each batch as it is given out."""
        self._places = tag

    @abstractmethod
    def _identity(self) -> dict[str, Any]:
        """All that decides which sample follows which, by name; JSON values."""

    @property
    def unusable(self) -> int:
        """Samples that this rank could not use so far."""
        return sum(place.unusable for place in self._places)

    def batches(self) -> Generator[B, None, None]:
        """Endless batches from where the streams stand, made ahead; close it to let go of threads and processes.

        Raises:
            DataError: a shard, table or image is broken, no image has a caption, or a worker died.
        """
        with closing(prefetched(self._made(), depth=_AHEAD)) as made:
            for batch, tag in made:
                self._taken(tag)
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where the streams of this rank stand behind the last batch that was given out, and what they are streams of;
        JSON values."""
        own = zip(self._shares.own_streams, self._places, strict=True)
        streams = [{"stream": stream, **asdict(place)} for stream, place in own]
        return {"version": _VERSION, "streams": streams, "of": self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state that holds this rank's streams, as one of all ranks does; call it before `batches`.

        Raises:
            DataError: the state is of another release, data set or setting (names all that differs), or of other
                streams.
        """
        if state.get("version") != _VERSION:
            raise DataError(f"loader state: version {state.get('version')!r} is not {_VERSION}; start training anew")
        own, other = self._identity(), state["of"]
        differing = [
            f"{name} was {other.get(name)!r} and is {own.get(name)!r}"
            for name in sorted(own.keys() | other.keys())
            if own.get(name) != other.get(name)
        ]
        if differing:
            raise DataError(f"loader state: {'; '.join(differing)}; restore these, or start training anew")
        places = {place["stream"]: place for place in state["streams"]}
        if missing := [stream for stream in self._shares.own_streams if stream not in places]:
            raise DataError(f"loader state: no place of stream {missing[0]}; join the states of all ranks")
        self._places = tuple(
            Place(**{name: int(places[stream][name]) for name in asdict(Place())})
            for stream in self._shares.own_streams
        )

    def _tasks(self, each: int = 0) -> Generator[Task[Places], None, None]:
        """Samples, stream after stream, and where the streams stand behind them.

        Args:
            each: samples of each stream; 0 takes what a batch is made of.
        """
        each = each or self._shares.global_batch // self._shares.all_streams
        with ExitStack() as stack:
            parts = [
                stack.enter_context(closing(self._parts(stream, place, each)))
                for stream, place in zip(self._shares.own_streams, self._places, strict=True)
            ]
            # Together: a stream whose buffer fills, at the start and with an epoch, waits for storage.
            together = stack.enter_context(ThreadPoolExecutor(_TOGETHER, "draw")).map if len(parts) > 1 else map
            while True:
                taken = list(together(next, parts))
                samples = [sample for part in taken for sample in part.samples]
                yield Task(samples, tuple(part.tag for part in taken))

    def _parts(self, stream: int, place: Place, size: int) -> Generator[Task[Place], None, None]:
        """So many samples of a stream at a time, and where it stands behind them."""
        samples, missing = list[Drawn[L]](), 0
        while True:
            order = self._order(stream, place.epoch)
            with closing(self._read(order, start=place.position)) as records:
                for record in records:
                    place = Place(place.epoch, place.position + 1, place.unusable + (record is None))
                    missing = 0 if record else missing + 1
                    if missing > self._dataset.manifest.images:
                        raise DataError(f"{self._dataset.captions.url}: {self._nothing}")
                    if record is None:
                        continue
                    samples.append(Drawn(place.epoch, record))
                    if len(samples) == size:
                        yield Task(samples, place)
                        samples = []
            place = Place(place.epoch + 1, 0, place.unusable)

    def _order(self, stream: int, epoch: int) -> StreamOrder:
        settings = self._shares
        return StreamOrder(
            self._counts,
            seed=settings.seed,
            epoch=epoch,
            stream=stream,
            streams=settings.all_streams,
            buffer=settings.buffer,
        )
