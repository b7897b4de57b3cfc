"""What training reads: an endless, deterministic stream of batches from the shards and their tables.

A global batch takes as many samples of each of S streams, in order. A rank of W makes the part of S / W neighbouring
streams: the global batch is the same whatever W. The order in a stream is a pure function of the manifest and the
settings (`data.order`), and what happens to a sample depends on the seed, the epoch and the sample alone
(`data.batches`). So a stream goes on from any position to the exact next sample, by any number of ranks and workers:

    loader = TrainLoader(dataset, settings, tokenize=processor.tokenize)
    with closing(loader.batches()) as batches:
        batch = next(batches)
    state = loader.state_dict()      # of what has been given out, not of what was made ahead

    # elsewhere, on as many ranks as divide the streams: the next batch is the one after `batch`
    loader.load_state_dict(joined(states_of_all_ranks))

Every stream has a shuffle buffer, two threads and at most two open shards.
"""

from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from typing import Any

from cloc.config.schema import AugmentationConfig
from cloc.data.batches import Batch, BatchMaker, BatchSettings, Drawn, Tokenize
from cloc.data.dataset import Dataset
from cloc.data.decoding import Task, decoded
from cloc.data.order import StreamOrder
from cloc.data.prefetch import prefetched
from cloc.data.reading import read_epoch
from cloc.errors import ConfigError, DataError

_VERSION = 2
_AHEAD = 2  # batches that wait to be taken
_TOGETHER = 16  # streams that are drawn from at the same time


@dataclass(frozen=True)
class LoaderSettings:
    """How the stream is made.

    Attributes:
        image_size: side of the network input, pixels.
        batch_size: images of a batch of this rank.
        max_regions: regions an image at most.
        alt_text_share: probability of the alt-text for caption where there is another one.
        seed: of order and sampling.
        point_share: probability of a point prompt.
        rank, world_size: of the process.
        streams: that a global batch is drawn from; 0 takes one a rank.
        buffer: samples (encoded) of a stream that are shuffled together.
        augmentation: random changes of the images.
        workers: processes that decode; 0 decodes in a thread. The stream is the same whatever their number.
        pinned: whether batches come in pinned memory, for a GPU.
    """

    image_size: int
    batch_size: int
    max_regions: int
    alt_text_share: float
    seed: int
    point_share: float = 0.0
    rank: int = 0
    world_size: int = 1
    streams: int = 0
    buffer: int = 2048
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    workers: int = 0
    pinned: bool = False

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


def check_division(*, batch_size: int, streams: int, processes: int) -> None:
    """Checks that streams share the batch, and processes the streams, in equal parts.

    Args:
        batch_size: images of a batch of all ranks.
        streams: that it is drawn from; 0 takes one a process.
        processes: ranks.

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
        raise ConfigError(f"train.batch_size {batch_size} is not divisible by {what}; set it to {near}, for example")


def check_amount(dataset: Dataset, *, batch_size: int) -> None:
    """Raises DataError when there are fewer images than a batch of all ranks takes."""
    if dataset.manifest.images < batch_size:
        raise DataError(
            f"{dataset.images.url}: {dataset.manifest.images} images are fewer than a batch of {batch_size}; lower "
            "train.batch_size"
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
class _Place:
    """Where a stream stands.

    Attributes:
        epoch: counted from 0.
        position: samples of the epoch that have been passed, whether they could be used or not.
        unusable: samples without a caption that have been passed in all epochs.
    """

    epoch: int = 0
    position: int = 0
    unusable: int = 0


_Places = tuple[_Place, ...]  # of a rank's streams


class TrainLoader:
    """The batches of one rank.

    Args:
        dataset: the labelled data set.
        settings: how they are made.
        tokenize: texts -> token ids (T, L); goes to workers by pickle.

    Raises:
        ConfigError: the ranks do not share the streams, or these the batch, in equal parts.
        DataError: there are fewer images than a batch of all ranks takes.
    """

    def __init__(self, dataset: Dataset, settings: LoaderSettings, *, tokenize: Tokenize) -> None:
        batch_size, ranks = settings.global_batch, settings.world_size
        check_division(batch_size=batch_size, streams=settings.streams, processes=ranks)
        self._dataset, self._settings, self._tokenize = dataset, settings, tokenize
        self._counts = [shard.images for shard in dataset.manifest.shards]
        self._places = tuple(_Place() for _ in settings.own_streams)
        check_amount(dataset, batch_size=batch_size)

    @property
    def unusable(self) -> int:
        """Samples without a caption that this rank has left out so far."""
        return sum(place.unusable for place in self._places)

    def batches(self) -> Generator[Batch, None, None]:
        """Endless batches from where the streams stand, made ahead; close it to let go of threads and processes.

        Raises:
            DataError: a shard, table or image is broken, no image has a caption, or a worker died.
        """
        with closing(prefetched(self._made(), depth=_AHEAD)) as made:
            for batch, places in made:
                self._places = places
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where the streams of this rank stand behind the last batch that was given out, and what they are streams of;
        JSON values."""
        own = zip(self._settings.own_streams, self._places, strict=True)
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
        if missing := [stream for stream in self._settings.own_streams if stream not in places]:
            raise DataError(f"loader state: no place of stream {missing[0]}; join the states of all ranks")
        self._places = tuple(
            _Place(**{name: int(places[stream][name]) for name in asdict(_Place())})
            for stream in self._settings.own_streams
        )

    def _identity(self) -> dict[str, Any]:
        """All that decides which sample follows which in the streams, and how a batch is drawn from them.

        Nothing about ranks and workers, which change neither; nor the size of the network input, which a run changes.
        """
        settings = self._settings
        return {
            "data": self._dataset.digest,
            "batch_size": settings.global_batch,
            "streams": settings.all_streams,
            "max_regions": settings.max_regions,
            "alt_text_share": settings.alt_text_share,
            "point_share": settings.point_share,
            "seed": settings.seed,
            "buffer": settings.buffer,
            "augmentation": settings.augmentation.model_dump(mode="json"),
        }

    def _made(self) -> Generator[tuple[Batch, _Places], None, None]:
        with closing(self._decoded()) as made:
            for batch, places in made:
                yield (batch.pinned() if self._settings.pinned else batch), places

    def _decoded(self) -> Generator[tuple[Batch, _Places], None, None]:
        settings = self._settings
        shape = BatchSettings(
            image_size=settings.image_size,
            batch_size=settings.batch_size,
            max_regions=settings.max_regions,
            alt_text_share=settings.alt_text_share,
            point_share=settings.point_share,
            augmentation=settings.augmentation,
            seed=settings.seed,
        )
        if settings.workers:
            yield from decoded(self._tasks(), shape, tokenize=self._tokenize, workers=settings.workers)
            return
        maker = BatchMaker(shape, tokenize=self._tokenize)
        with closing(self._tasks()) as tasks:
            for task in tasks:
                yield maker.make(task.samples), task.tag

    def _tasks(self) -> Generator[Task[_Places], None, None]:
        """What each batch is made of, and where the streams stand behind it."""
        with ExitStack() as stack:
            parts = [
                stack.enter_context(closing(self._parts(stream, place)))
                for stream, place in zip(self._settings.own_streams, self._places, strict=True)
            ]
            # Together: a stream whose buffer fills, at the start and with an epoch, waits for storage.
            together = stack.enter_context(ThreadPoolExecutor(_TOGETHER, "draw")).map if len(parts) > 1 else map
            while True:
                taken = list(together(next, parts))
                samples = [sample for part in taken for sample in part.samples]
                yield Task(samples, tuple(part.tag for part in taken))

    def _parts(self, stream: int, place: _Place) -> Generator[Task[_Place], None, None]:
        """What a stream gives to each batch, and where it stands behind that."""
        size = self._settings.global_batch // self._settings.all_streams
        samples, missing = list[Drawn](), 0
        while True:
            order = self._order(stream, place.epoch)
            with closing(read_epoch(self._dataset, order, start=place.position)) as records:
                for record in records:
                    place = _Place(place.epoch, place.position + 1, place.unusable + (record is None))
                    missing = 0 if record else missing + 1
                    if missing > self._dataset.manifest.images:
                        raise DataError(f"{self._dataset.captions.url}: no image has a caption; run captioning first")
                    if record is None:
                        continue
                    samples.append(Drawn(place.epoch, record))
                    if len(samples) == size:
                        yield Task(samples, place)
                        samples = []
            place = _Place(place.epoch + 1, 0, place.unusable)

    def _order(self, stream: int, epoch: int) -> StreamOrder:
        settings = self._settings
        return StreamOrder(
            self._counts,
            seed=settings.seed,
            epoch=epoch,
            stream=stream,
            streams=settings.all_streams,
            buffer=settings.buffer,
        )
