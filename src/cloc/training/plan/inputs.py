"""What a plan is told by the things that are there: a data set, this machine."""

from dataclasses import dataclass

from cloc.config import Config
from cloc.data.dataset import Dataset, resolve_split
from cloc.errors import ConfigError
from cloc.training.plan.figures import Figure, Origin
from cloc.training.plan.measure import Machine, measure
from cloc.training.plan.sizes import known_checkpoint, sizes
from cloc.training.task import Objective


@dataclass(frozen=True)
class Counted:
    """Size of a data set."""

    images: int
    shards: int


def data_figures(config: Config, data: str) -> tuple[dict[str, Figure], Counted]:
    """Bytes of an image, and numbers, by a data set's manifest.

    Args:
        config: section `data` says which split of a collection.
        data: the data set, or a collection.

    Raises:
        DataError: there is none.
        ConfigError: it is empty.
    """
    dataset = Dataset.open(resolve_split(data, config.data.train_split))
    shards = dataset.manifest.shards
    if not dataset.manifest.images:
        raise ConfigError(f"--data {data}: the data set has no images")
    size = sum(shard.bytes for shard in shards) / dataset.manifest.images
    what = "an image in its tar, with its metadata"
    figure = Figure(size, "B", what, f"{dataset.images.url}/manifest.json", Origin.MEASURED)
    return {"image_bytes": figure}, Counted(dataset.manifest.images, len(shards))


def measured_machine(config: Config, *, objective: Objective) -> Machine:
    """This machine, measured with the model of these settings."""
    config, _ = known_checkpoint(config)
    return measure(config, sizes(config, objective=objective), objective=objective)
