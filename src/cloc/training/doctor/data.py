"""The data set of a stage: that it opens, is large enough, and has the labels that are needed."""

import itertools

from cloc.data import tables
from cloc.data.dataset import Dataset, resolve_split
from cloc.data.schema import Table
from cloc.data.storage import Storage
from cloc.errors import DataError
from cloc.training.doctor.registry import DATA_ROLES, Skip, Subject, Warn, check


@check("data set", *DATA_ROLES)
def data_set(subject: Subject) -> str:
    """There is one, and its first shard can be read."""
    dataset = subject.open()
    manifest = dataset.manifest
    if not manifest.images:
        subject.opened = None
        raise DataError(f"{dataset.images.url}: the data set has no images; ingest some")
    next(iter(dataset.read_samples(manifest.shards[0])))
    return f"{dataset.images.url}: {manifest.images:,} images in {len(manifest.shards):,} shards"


@check("shards", "train", cheap=True)
def shards(subject: Subject) -> str:
    """Every stream and every worker has shards of its own."""
    train, number = subject.config.train, len(subject.dataset.manifest.shards)
    streams = train.streams or subject.ranks
    readers = max(streams, subject.ranks * max(1, train.workers))
    if number < readers:
        raise Warn(
            f"{number:,} shards are fewer than {readers:,} readers ({streams:,} streams, {train.workers} workers a "
            "process): some read the same tars; ingest with a lower data.images_per_shard, or lower train.workers"
        )
    return f"{number:,} for {streams:,} streams and {train.workers} workers a process"


@check("images", "train", cheap=True)
def images(subject: Subject) -> str:
    """There are as many images as a batch takes."""
    from cloc.data.loader import check_amount

    train, number = subject.config.train, subject.dataset.manifest.images
    check_amount(subject.dataset, batch_size=train.batch_size)
    epochs = train.steps * train.batch_size / number
    if epochs > 1000:
        raise Warn(f"{train.steps:,} steps of {train.batch_size:,} show each of {number:,} images {epochs:,.0f} times")
    return f"{number:,}: {epochs:,.2f} epochs"


@check("captions", "train", "validate", "mllm", cheap=True)
def captions(subject: Subject) -> str:
    """The captions tables are there."""
    return _labels(subject, subject.dataset.captions, "captions", make="cloc caption")


@check("regions", "train", "validate", "mllm", cheap=True)
def regions(subject: Subject) -> str:
    """The regions tables are there."""
    if subject.role == "train" and subject.objective == "clip":
        raise Skip("plain CLIP reads none")
    return _labels(subject, subject.dataset.regions, "regions", make="cloc ground")


def _labels(subject: Subject, storage: Storage, table: Table, *, make: str) -> str:
    """Looks into the tables of the first and the last shard, and counts the others."""
    dataset = subject.dataset
    all_shards = dataset.manifest.shards
    if not all_shards:
        raise DataError(f"{dataset.images.url}: the data set has no shards; ingest images into it")
    for shard in dict.fromkeys((all_shards[0], all_shards[-1])):
        if not tables.has_table(storage, table, shard.name):
            raise DataError(f"{storage.url}: there is no {tables.table_path(table, shard.name)}; run `{make}`")
        tables.read_table(storage, table, shard.name)
    # One more than there are shards is enough to know.
    found = sum(1 for _ in itertools.islice(storage.walk(table), len(all_shards) + 1))
    if found < len(all_shards):
        raise DataError(
            f"{storage.url}: {found:,} of {len(all_shards):,} shards have a {table} table; run `{make}` again, which "
            "does what is missing"
        )
    return f"{storage.url}: a table for each of {len(all_shards):,} shards"


@check("held-out split", "train")
def held_out_split(subject: Subject) -> str:
    """What is evaluated while training is there, with its labels."""
    from cloc.training.data_check import held_out

    train = subject.config.train
    if not train.evaluate_every:
        raise Skip("nothing is evaluated while training (train.evaluate_every: 0)")
    if not subject.data:
        raise Skip("no --data was given")
    split = Dataset.open(held_out(train, subject.data))
    if split.manifest.images and not split.rows("captions", split.manifest.shards[0]):
        raise DataError(f"{split.images.url}: its first shard has no captions, which evaluation compares with")
    if split.manifest.images < train.evaluate_images:
        raise Warn(f"{split.images.url}: {split.manifest.images} images are fewer than train.evaluate_images")
    return f"{split.images.url}: {split.manifest.images:,} images"


@check("test splits", "evaluate")
def test_splits(subject: Subject) -> str:
    """Every split that is evaluated is there, with people's boxes or captions."""
    if not subject.data:
        raise Skip("no --data was given")
    for name in subject.config.data.test_splits:
        split = Dataset.open(resolve_split(subject.data, name))
        first = split.manifest.shards[0] if split.manifest.shards else None
        if first is None or not (split.rows("captions", first) or split.rows("regions", first)):
            raise DataError(f"{split.images.url}: its first shard has neither captions nor regions to evaluate with")
    return ", ".join(subject.config.data.test_splits)
