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

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from cloc.config.schema import AugmentationConfig
from cloc.data.batches import Batch, BatchMaker, BatchSettings, Tokenize
from cloc.data.dataset import Dataset
from cloc.data.decoding import decoded
from cloc.data.join import Labels, ShardLabels
from cloc.data.order import StreamOrder
from cloc.data.reading import Record, read_epoch
from cloc.data.streams import (
    Places,
    Streams,
    StreamSettings,
    check_amount,
    check_division,
    joined,
    streams_of,
    unusable_of,
)

__all__ = [
    "LoaderSettings",
    "TrainLoader",
    "check_amount",
    "check_division",
    "joined",
    "streams_of",
    "unusable_of",
]


@dataclass(frozen=True, kw_only=True)
class LoaderSettings(StreamSettings):
    """How the stream is made.

    Attributes, besides those of `StreamSettings`:
        image_size: side of the network input, pixels.
        max_regions: regions an image at most.
        alt_text_share: probability of the alt-text for caption where there is another one.
        point_share: probability of a point prompt.
        augmentation: random changes of the images.
        workers: processes that decode; 0 decodes in a thread. The stream is the same whatever their number.
        pinned: whether batches come in pinned memory, for a GPU.
    """

    image_size: int
    max_regions: int
    alt_text_share: float
    point_share: float = 0.0
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    workers: int = 0
    pinned: bool = False


class TrainLoader(Streams[Batch, Labels]):
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
        super().__init__(dataset, settings)
        self._settings, self._tokenize = settings, tokenize

    def _read(self, order: StreamOrder, *, start: int) -> Generator[Record[Labels] | None, None, None]:
        return read_epoch(self._dataset, order, labels=ShardLabels, start=start)

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

    def _made(self) -> Generator[tuple[Batch, Places], None, None]:
        with closing(self._decoded()) as made:
            for batch, places in made:
                yield (batch.pinned() if self._settings.pinned else batch), places

    def _decoded(self) -> Generator[tuple[Batch, Places], None, None]:
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
