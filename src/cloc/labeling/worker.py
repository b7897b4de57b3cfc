"""The resumable shard worker that captioning and grounding share.

A shard is the unit of work, retry and commit: its samples are streamed, decoded and prepared ahead in threads, labelled
in batches, and its table appears whole, with the hashes of what it was made from and of the settings that matter. So a
killed run loses at most the shards under way, a rerun skips what stands, and what changed is redone. The next shard is
read while the last one is labelled and written: a model never waits for the end of a shard.

What a shard's table holds depends on that shard alone: a batch is of one shard, and batches are formed in reading
order, whatever the threads do.

A bad image goes to quarantine and stops nothing. Quarantine rows of a whole image carry the stage's name ("grounding");
rows of a single box or caption of an image that keeps its others carry "<stage>/item". Only whole images count towards
the limit.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

from PIL import Image

from cloc.data import tables
from cloc.data.dataset import Dataset, LabeledSample
from cloc.data.prefetch import prefetched
from cloc.data.schema import Shard, Table
from cloc.data.storage import Storage, open_storage
from cloc.errors import ClocError, DataError
from cloc.labeling.images import BadImageError, decode
from cloc.labeling.statistics import ShardStats
from cloc.stage import fingerprint

T = TypeVar("T")
_HELD = 8  # batches of images that wait at most for others of their padded size
_FAILURES_IN_A_ROW = 32  # images that the model fails at: then it is the model's fault, or its device's
# What models and their processors raise for an image that they cannot take; anything else is a fault of the program.
_IMAGE_ERRORS = (ValueError, RuntimeError, IndexError, ZeroDivisionError, OSError)


@dataclass(frozen=True)
class Item:
    """One image to label: its decoded RGB pixels and the sample it comes from, with its rows of the tables."""

    image: Image.Image
    sample: LabeledSample

    @property
    def key(self) -> str:
        """The sample's key."""
        return self.sample.sample.key

    @property
    def alt_texts(self) -> list[str]:
        """The alt-text of the data's captions table, else that of the sample's JSON; [] for an image without any."""
        rows = [row["text"] for row in self.sample.captions if row["kind"] == "alt_text"]
        alt_text = self.sample.sample.meta.get("alt_text")
        return rows or ([alt_text] if isinstance(alt_text, str) else [])


@dataclass(frozen=True)
class Labels:
    """What a labeler says of one image.

    Attributes:
        rows: rows of the stage's table, by the contract's columns, without the key.
        refused: why the whole image cannot be used; "" when it can. A refused image has no rows.
        refused_items: reasons, one for each box or caption that was left out.
        counts: anything worth summing over a shard.
    """

    rows: Sequence[dict[str, Any]] = ()
    refused: str = ""
    refused_items: Sequence[str] = ()
    counts: Mapping[str, int] = field(default_factory=dict)


class Labeler(Protocol[T]):
    """Labels batches of images, which it prepares one by one.

    Attributes:
        in_flight: batches that may be labelled at once, each in a thread of its own; 1 for a local model.
    """

    in_flight: int

    def prepare(self, item: Item) -> T:
        """What the model needs of an image; called in threads, ahead of the model.

        Raises:
            BadImageError: the image cannot be used; it is quarantined with the message.
        """

    def bucket(self, prepared: T) -> Hashable:
        """What images must have in common to share a batch, such as their padded size."""

    def label(self, batch: Sequence[T]) -> Sequence[Labels]:
        """One `Labels` for each, in order."""


class Watch(Protocol):
    """Whoever wants to know how far the work is; told from several threads, one at a time."""

    def advance(self, images: int, rows: int = 0) -> None:
        """Images went through and got so many rows."""

    def time(self, *, waited: float, worked: float) -> None:
        """Seconds in which the labeler waited for data, and in which it worked."""


@dataclass(frozen=True)
class Job:
    """What is to be labelled, read from where and written to where; plain values, so that processes can be given it.

    Attributes:
        stage: name of the stage, in quarantine and in messages.
        table: the table that is written.
        data: data set of the images.
        captions: where the captions table lies; "" for beside the images. Regions are read beside the images.
        output: root of the table that is written, and of the quarantine table.
        reads: tables that the labels depend on besides the images.
        required: those of them that must be there.
        config_hash: hash of the settings that the labels depend on.
        made_by: what labels, for the table's metadata: JSON, or "".
        batch_size: images a batch.
        min_side, max_pixels: limits on images, pixels.
        threads: threads that decode and prepare images, a process.
    """

    stage: str
    table: Table
    data: str
    captions: str
    output: str
    reads: tuple[Table, ...]
    required: tuple[Table, ...]
    config_hash: str
    batch_size: int
    min_side: int
    max_pixels: int
    threads: int = 1
    made_by: str = ""

    def open(self) -> Dataset:
        """The data set with the tables that the job reads."""
        return Dataset.open(self.data, captions=self.captions or None)

    def input_hash(self, data: Dataset, shard: Shard) -> str:
        """Hash of what the shard's labels are made from: its tar and the tables joined to it.

        Raises:
            DataError: a required table is absent.
        """
        found = []
        for table in self.reads:
            storage = data.captions if table == "captions" else data.regions
            content = tables.content_hash(storage, table, shard.name)
            if not content and table in self.required:
                raise DataError(
                    f"{self.stage}: shard {shard.name} of {self.data} has no {table} table "
                    f"({storage.url}/{tables.table_path(table, shard.name)}); make the {table} first"
                )
            found.append(content)
        return fingerprint(shard.content, self.reads, found)


@dataclass
class _Opened:
    """A shard under way: what was said of its images so far, by position."""

    shard: Shard
    input_hash: str
    keys: list[str] = field(default_factory=list)
    labels: dict[int, Labels] = field(default_factory=dict)
    buckets: dict[Hashable, list[tuple[int, Any]]] = field(default_factory=dict)
    read: bool = False
    closed: bool = False


@dataclass(frozen=True)
class _Prepared:
    """A prepared image, or why there is none."""

    value: Any = None
    bucket: Hashable = None
    refused: str = ""


@dataclass(frozen=True)
class _Read:
    """An image of a shard that is being prepared; without one, the shard's end."""

    opened: _Opened
    key: str = ""
    prepared: Future[_Prepared] | None = None


@dataclass(frozen=True)
class _Batch:
    opened: _Opened
    members: tuple[tuple[int, Any], ...]


class Worker:
    """Labels shards, one after another, in this process.

    Args:
        job: what is to be done.
        labeler: the backend, ready to work.
        watch: told of every batch.
    """

    def __init__(self, job: Job, labeler: Labeler[Any], *, watch: Watch) -> None:
        self._job, self._labeler, self._watch = job, labeler, watch
        self._data, self._output = job.open(), open_storage(job.output)
        self._preparing = ThreadPoolExecutor(job.threads, thread_name_prefix="prepare")
        self._labelling = ThreadPoolExecutor(labeler.in_flight, thread_name_prefix="label")
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._running: deque[tuple[_Batch, Future[list[Labels]]]] = deque()
        self._written: deque[tuple[str, Future[ShardStats]]] = deque()
        self._clock = _Clock(watch)
        self._failures = 0  # in a row

    def label(self, shards: Iterable[Shard]) -> Iterator[tuple[str, ShardStats]]:
        """Labels shards and writes their tables; gives the name and the statistics of each that is written.

        Raises:
            DataError: a shard is unreadable.
        """
        depth = 2 * self._job.batch_size + self._job.threads
        try:
            with closing(prefetched(self._read(shards), depth=depth)) as reads:
                for read in reads:
                    for batch in self._take(read):
                        # One batch waits behind those that run: a model that ends one goes on at once.
                        self._running.append((batch, self._labelling.submit(self._label, batch)))
                        self._settle(running=self._labeler.in_flight)
                    self._close(read.opened)
                    while self._written and self._written[0][1].done():
                        yield self._next_written()
            self._settle(running=0)
            while self._written:
                yield self._next_written()
        finally:
            for pool in (self._preparing, self._labelling, self._writing):
                pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, shards: Iterable[Shard]) -> Iterator[_Read]:
        """Runs in a thread of its own; the depth of the prefetching bounds how many images are in memory."""
        for shard in shards:
            opened = _Opened(shard, self._job.input_hash(self._data, shard))
            for sample in self._data.read(shard):
                yield _Read(opened, sample.sample.key, self._preparing.submit(self._prepare, sample))
            yield _Read(opened)

    def _prepare(self, sample: LabeledSample) -> _Prepared:
        try:
            image = decode(sample.sample.image, min_side=self._job.min_side, max_pixels=self._job.max_pixels)
            value = self._labeler.prepare(Item(image, sample))
            return _Prepared(value, self._labeler.bucket(value))
        except BadImageError as error:
            return _Prepared(refused=str(error))
        except ClocError:
            raise
        except _IMAGE_ERRORS as error:
            return _Prepared(refused=f"cannot be prepared: {_line(error)}")

    def _take(self, read: _Read) -> Iterator[_Batch]:
        """Files an image under its bucket; gives the batches that are then full, at the shard's end all that wait."""
        opened = read.opened
        if read.prepared is None:
            opened.read = True
            for bucket in list(opened.buckets):
                yield _Batch(opened, tuple(opened.buckets.pop(bucket)))
            return
        place, prepared = len(opened.keys), read.prepared.result()
        opened.keys.append(read.key)
        if prepared.refused:
            opened.labels[place] = Labels(refused=prepared.refused)
            self._watch.advance(1)
            return
        waiting = opened.buckets.setdefault(prepared.bucket, [])
        waiting.append((place, prepared.value))
        if len(waiting) == self._job.batch_size:
            yield _Batch(opened, tuple(opened.buckets.pop(prepared.bucket)))
        elif sum(map(len, opened.buckets.values())) > _HELD * self._job.batch_size:
            fullest = max(opened.buckets, key=lambda bucket: len(opened.buckets[bucket]))
            yield _Batch(opened, tuple(opened.buckets.pop(fullest)))

    def _label(self, batch: _Batch) -> list[Labels]:
        with self._clock:
            return self._attempt([value for _, value in batch.members])

    def _attempt(self, values: Sequence[Any]) -> list[Labels]:
        """Labels a batch; where the model fails at it, each image alone, so that a bad one stops nothing."""
        try:
            labels = list(self._labeler.label(values))
        except ClocError:
            raise
        except _IMAGE_ERRORS as error:
            if len(values) > 1:
                return [labels for value in values for labels in self._attempt([value])]
            self._failures += 1
            if self._failures >= _FAILURES_IN_A_ROW:
                raise ClocError(
                    f"{self._job.stage}: the model fails at {self._failures} images in a row ({_line(error)}); look at "
                    "it and its device, then run again to go on"
                ) from error
            return [Labels(refused=f"the model fails at it: {_line(error)}")]
        self._failures = 0
        assert len(labels) == len(values), "a labeler says something of every image"
        return labels

    def _settle(self, *, running: int) -> None:
        """Takes the labels of finished batches, and waits until at most `running` and one more are under way."""
        while self._running and (len(self._running) > running + bool(running) or self._running[0][1].done()):
            batch, future = self._running.popleft()
            rows = 0
            for (place, _), labels in zip(batch.members, future.result(), strict=True):
                assert not (labels.refused and labels.rows), "a refused image has no rows"
                batch.opened.labels[place] = labels
                rows += sum(row.get("kind") != "alt_text" for row in labels.rows)
            self._watch.advance(len(batch.members), rows)
            self._close(batch.opened)

    def _close(self, opened: _Opened) -> None:
        """Has a shard written once everything was said of it."""
        if opened.read and not opened.closed and len(opened.labels) == len(opened.keys):
            opened.closed = True
            self._written.append((opened.shard.name, self._writing.submit(self._write, opened)))

    def _next_written(self) -> tuple[str, ShardStats]:
        name, stats = self._written.popleft()
        return name, stats.result()

    def _write(self, opened: _Opened) -> ShardStats:
        """Writes a shard's tables."""
        job, name = self._job, opened.shard.name
        rows: list[dict[str, Any]] = []
        refused: list[dict[str, Any]] = []
        counts: Counter[str] = Counter()
        for place, key in enumerate(opened.keys):
            labels = opened.labels[place]
            rows += [{"key": key, **row} for row in labels.rows]
            if labels.refused:
                refused.append({"key": key, "stage": job.stage, "reason": labels.refused})
            refused += [{"key": key, "stage": f"{job.stage}/item", "reason": why} for why in labels.refused_items]
            counts.update(labels.counts)
        stats = ShardStats.of(
            rows,
            images=len(opened.keys),
            reasons=[row["reason"] for row in refused if row["stage"] == job.stage],
            item_reasons=[row["reason"] for row in refused if row["stage"] != job.stage],
            counts=counts,
        )
        write = partial(
            tables.write_table, self._output, shard=name, input_hash=opened.input_hash, config_hash=job.config_hash
        )
        # Quarantine first: the stage's own table is the commit that a rerun looks for.
        others = [row for row in _quarantine(self._output, name) if row["stage"].partition("/")[0] != job.stage]
        write(table="quarantine", rows=[*others, *refused])
        write(table=job.table, rows=rows, statistics=stats.to_json(), made_by=job.made_by)
        return stats


class _Clock:
    """Tells the watch how long at least one batch was being labelled, and how long none was."""

    def __init__(self, watch: Watch) -> None:
        self._watch, self._lock = watch, threading.Lock()
        self._active, self._since = 0, time.monotonic()

    def __enter__(self) -> None:
        with self._lock:
            if not self._active:
                self._watch.time(waited=self._lap(), worked=0.0)
            self._active += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._active -= 1
            if not self._active:
                self._watch.time(waited=0.0, worked=self._lap())

    def _lap(self) -> float:
        before, self._since = self._since, time.monotonic()
        return self._since - before


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _quarantine(storage: Storage, shard: str) -> list[dict[str, Any]]:
    if not tables.has_table(storage, "quarantine", shard):
        return []
    rows: list[dict[str, Any]] = tables.read_table(storage, "quarantine", shard).to_pylist()
    return rows
