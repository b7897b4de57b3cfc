"""What training reads: an endless, deterministic stream of batches from the shards and their tables.

The order is a pure function of the manifest and the settings (`data.order`), and what happens to a sample depends on
the seed, the epoch and the sample alone (`data.batches`). So a stream goes on from any position to the exact next
sample, by any number of workers:

    loader = TrainLoader(dataset, settings, tokenize=processor.tokenize)
    with closing(loader.batches()) as batches:
        batch = next(batches)
    state = loader.state_dict()      # of what has been given out, not of what was made ahead

    loader.load_state_dict(state)    # in another process: the next batch is the one after `batch`
"""

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

from cloc.config.schema import AugmentationConfig
from cloc.data.batches import Batch, BatchMaker, BatchSettings, Drawn, Tokenize
from cloc.data.dataset import Dataset
from cloc.data.decoding import Task, decoded
from cloc.data.order import RankOrder
from cloc.data.prefetch import prefetched
from cloc.data.reading import read_epoch
from cloc.errors import DataError

_VERSION = 1
_AHEAD = 2  # batches that wait to be taken


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
        buffer: samples (encoded) that are shuffled together.
        augmentation: random changes of the images.
        workers: processes that decode; 0 decodes in a thread. The stream is the same whatever their number.
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
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    workers: int = 0


@dataclass(frozen=True)
class _Place:
    """Where a rank's stream stands.

    Attributes:
        epoch: counted from 0.
        position: samples of the epoch that have been passed, whether they could be used or not.
        unusable: samples without a caption that have been passed in all epochs.
    """

    epoch: int = 0
    position: int = 0
    unusable: int = 0


class TrainLoader:
    """The stream of one rank.

    Args:
        dataset: the labelled data set.
        settings: how the stream is made.
        tokenize: texts -> token ids (T, L); goes to workers by pickle.

    Raises:
        DataError: there are fewer images than a batch of all ranks takes.
    """

    def __init__(self, dataset: Dataset, settings: LoaderSettings, *, tokenize: Tokenize) -> None:
        self._dataset, self._settings, self._tokenize = dataset, settings, tokenize
        self._counts = [shard.images for shard in dataset.manifest.shards]
        self._place = _Place()
        if dataset.manifest.images < settings.batch_size * settings.world_size:
            raise DataError(
                f"{dataset.images.url}: {dataset.manifest.images} images are fewer than a batch of "
                f"{settings.batch_size * settings.world_size}; lower train.batch_size"
            )

    @property
    def unusable(self) -> int:
        """Samples without a caption that have been left out so far."""
        return self._place.unusable

    def batches(self) -> Generator[Batch, None, None]:
        """Endless batches from where the stream stands, made ahead; close it to let go of threads and processes.

        Raises:
            DataError: a shard, table or image is broken, no image has a caption, or a worker died.
        """
        with closing(prefetched(self._made(), depth=_AHEAD)) as made:
            for batch, place in made:
                self._place = place
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands behind the last batch that was given out, and what it is a stream of; JSON values."""
        return {"version": _VERSION, **asdict(self._place), "of": self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state; call it before `batches`.

        Raises:
            DataError: the state is of another release, data set, rank or setting; names all that differs.
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
        self._place = _Place(**{name: int(state[name]) for name in asdict(self._place)})

    def _identity(self) -> dict[str, Any]:
        """All that decides which batch follows which."""
        settings = asdict(self._settings) | {"augmentation": self._settings.augmentation.model_dump(mode="json")}
        del settings["workers"]
        return {"data": self._dataset.digest, **settings}

    def _made(self) -> Generator[tuple[Batch, _Place], None, None]:
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

    def _tasks(self) -> Generator[Task[_Place], None, None]:
        """What each batch is made of, and where the stream stands behind it."""
        place, samples, missing = self._place, list[Drawn](), 0
        while True:
            with closing(read_epoch(self._dataset, self._order(place.epoch), start=place.position)) as records:
                for record in records:
                    place = _Place(place.epoch, place.position + 1, place.unusable + (record is None))
                    missing = 0 if record else missing + 1
                    if missing > self._dataset.manifest.images:
                        raise DataError(f"{self._dataset.captions.url}: no image has a caption; run captioning first")
                    if record is None:
                        continue
                    samples.append(Drawn(place.epoch, record))
                    if len(samples) == self._settings.batch_size:
                        yield Task(samples, place)
                        samples = []
            place = _Place(place.epoch + 1, 0, place.unusable)

    def _order(self, epoch: int) -> RankOrder:
        settings = self._settings
        return RankOrder(
            self._counts,
            seed=settings.seed,
            epoch=epoch,
            rank=settings.rank,
            world_size=settings.world_size,
            buffer=settings.buffer,
        )
