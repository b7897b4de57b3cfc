"""Whether there is something to train on, asked before a job is launched: ranks would find out hours of queue later."""

from cloc.config import Config
from cloc.data.dataset import Dataset
from cloc.data.loader import check_division
from cloc.errors import DataError
from cloc.training.task import Objective


def check_data(dataset: Dataset, config: Config, *, objective: Objective) -> None:
    """Looks at the manifest and into the first tables.

    Raises:
        ConfigError: the processes do not share the batch in equal parts.
        DataError: there are no shards, fewer images than a batch, no captions, or no regions though the objective
            needs them.
    """
    train = config.train
    check_division(batch_size=train.batch_size, streams=train.streams, processes=train.processes * train.nodes)
    images, batch_size = dataset.manifest.images, train.batch_size
    if not images:
        raise DataError(f"{dataset.images.url}: the data set has no shards; ingest images into it")
    if images < batch_size:
        raise DataError(
            f"{dataset.images.url}: {images} images are fewer than a batch of {batch_size}; lower train.batch_size"
        )
    shards = dataset.manifest.shards
    if not any(dataset.rows("captions", shard) for shard in shards):
        raise DataError(f"{dataset.captions.url}: no image has a caption; run captioning first")
    if (
        objective == "cloc"
        and config.loss.region_weight
        and not any(dataset.rows("regions", shard) for shard in shards)
    ):
        raise DataError(
            f"{dataset.regions.url}: no image has a region; run grounding first, or train plain CLIP (objective clip)"
        )
