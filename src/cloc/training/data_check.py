"""Whether there is something to train on, asked before a job is launched: ranks would find out hours of queue later."""

from cloc.config import Config
from cloc.config.schema import TrainConfig
from cloc.data.dataset import Dataset
from cloc.data.loader import check_amount, check_division
from cloc.data.schema import MANIFEST
from cloc.data.storage import open_storage
from cloc.errors import ConfigError, DataError
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
    if not dataset.manifest.images:
        raise DataError(f"{dataset.images.url}: the data set has no shards; ingest images into it")
    check_amount(dataset, batch_size=train.batch_size)
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


def held_out(train: TrainConfig, data: str) -> str:
    """Root of the data set for evaluation while training; empty where none is made.

    Raises:
        ConfigError: the data are no collection, or have no such split.
    """
    if not train.evaluate_every:
        return ""
    storage = open_storage(data)
    if storage.exists(MANIFEST) or not storage.exists(f"{train.evaluate_split}/{MANIFEST}"):
        raise ConfigError(
            f"train.evaluate_every is {train.evaluate_every}, but {data} has no split {train.evaluate_split!r} "
            "(train.evaluate_split); give a collection that has it, or set train.evaluate_every=0"
        )
    return f"{data.rstrip('/')}/{train.evaluate_split}"
