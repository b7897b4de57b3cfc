"""One shard of an ingest: its images checked, its tar and tables written, in a worker process or in this one."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from cloc.data.ingest.admit import Limits, Rows, admit
from cloc.data.ingest.finished import ShardReport, begin_shard, find_shard, finish_shard
from cloc.data.ingest.parts import Item, Part
from cloc.data.shards import Sample, ShardWriter
from cloc.data.storage import open_storage
from cloc.data.texts import printable
from cloc.errors import DataError
from cloc.stage import fingerprint

# Raise it when the same sources give other shards than before, so that old ones are made again.
_VERSION = 3


@dataclass(frozen=True)
class PackTask:
    """What a worker needs to make one shard.

    Attributes:
        shard: its name.
        part: its images.
        output: URL of the data set.
        limits: what they must be like.
    """

    shard: str
    part: Part
    output: str
    limits: Limits

    def make(self, *, tick: Callable[[int], None] | None = None) -> ShardReport:
        """Makes the shard, or finds it made.

        Args:
            tick: called with the number of images done, after each.

        Raises:
            DataError: two of its images have one key.
        """
        storage = open_storage(self.output)
        source_hash = fingerprint(_VERSION, dataclasses.astuple(self.limits), self.part.fingerprint())
        finished = find_shard(storage, self.shard, source_hash)
        if finished is not None:
            return finished
        begin_shard(storage, self.shard)
        writer, rows, names = ShardWriter(), Rows(), dict[str, str]()
        for done, item in enumerate(self.part.read(), start=1):
            _check_key(item, names)
            _pack(item, writer, rows, self.limits)
            if tick is not None:
                tick(done)
        entry = writer.write(storage, self.shard) if len(writer) else None
        return finish_shard(storage, self.shard, entry, rows, source_hash=source_hash)


def _check_key(item: Item, names: dict[str, str]) -> None:
    key, name = item.record.key, printable(item.record.name)
    if key in names:
        raise DataError(f"{names[key]!r} and {name!r} have the same key {key!r}; rename one of them")
    names[key] = name


def _pack(item: Item, writer: ShardWriter, rows: Rows, limits: Limits) -> None:
    record = item.record
    admitted = admit(record, item.body, rows=rows, limits=limits)
    if admitted is None:
        return
    image = admitted.image
    meta = {
        "alt_text": admitted.alt_text,
        "source": printable(record.source),
        "licence": printable(record.licence),
        "file": printable(record.name),
        "width": image.width,
        "height": image.height,
    }
    writer.add(Sample(key=record.key, image=image.body, suffix=image.suffix, meta=meta))
