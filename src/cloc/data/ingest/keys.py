"""Keys are unique over a whole data set, however large: two shards that share one are found with little memory.

Each key becomes a 64-bit hash with the number of its shard. Runs of them that fit into memory are sorted and put into
one temporary file; then the hashes are gone through range by range, each range small enough to be sorted in memory.
Equal neighbours are looked up: only equal keys are a clash. 2e9 keys take 24 GB where temporary files lie (TMPDIR).
"""

import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cloc.data import tables
from cloc.data.dataset import Dataset
from cloc.data.schema import Manifest, Shard
from cloc.data.storage import Storage
from cloc.errors import DataError

MEMORY_BYTES = 256 << 20
_RECORD_BYTES = 64  # in memory, while records are sorted
_BUCKET_BITS = 12  # the finest division of the hashes into ranges
_HEARTBEAT_S = 8.0
_READERS = 8  # tables that are read at once: on S3 each takes a while to come

Hashes = npt.NDArray[np.uint64]
Shards = npt.NDArray[np.uint32]
ReadKeys = Callable[[int], Sequence[str]]


@dataclass(frozen=True)
class Clash:
    """A key that stands twice.

    Attributes:
        key: the key.
        first, second: numbers of the shards that have it, in order; equal when one shard has it twice.
    """

    key: str
    first: int
    second: int


@dataclass(frozen=True)
class _Run:
    """Sorted records in the file: all hashes, then all shards.

    Attributes:
        offset: where it begins, bytes.
        bounds: number of the first record of each bucket, and of all records.
    """

    offset: int
    bounds: npt.NDArray[np.int64]


def check_keys(storage: Storage, shards: Sequence[Shard]) -> None:
    """Compares the keys of all shards of a data set, by their tables of fingerprints.

    Raises:
        DataError: two samples have one key; names both.
    """
    last = time.monotonic()

    def read(number: int) -> list[str]:
        body = storage.read_bytes(tables.table_path("fingerprints", shards[number].name))
        keys: list[str] = pq.read_table(pa.BufferReader(body), columns=["key"])["key"].to_pylist()
        return keys

    def tick(done: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _HEARTBEAT_S:
            last = time.monotonic()
            print(f"ingest: keys of {done} of {len(shards)} shards compared", flush=True)

    clash = find_clash(len(shards), read, tick=tick)
    if clash is not None:
        first, second = (_describe(storage, shards[number], clash.key) for number in (clash.first, clash.second))
        raise DataError(
            f"ingest: the key {clash.key!r} stands twice: {first} and {second}; rename one of them, or make data sets "
            "of their own of sources that number their images alike"
        )


def _describe(storage: Storage, shard: Shard, key: str) -> str:
    """A sample by its file, where that is known, its shard and tar."""
    dataset = Dataset(images=storage, manifest=Manifest(shards=(shard,)), captions=storage, regions=storage)
    sample = next(sample for sample in dataset.read_samples(shard) if sample.key == key)
    file = "" if shard.foreign else f"{sample.meta.get('file', key)!r} "
    return f"{file}in shard {shard.name} ({dataset.source(shard)})"


def find_clash(
    shards: int, read: ReadKeys, *, memory_bytes: int = MEMORY_BYTES, tick: Callable[[int], None] | None = None
) -> Clash | None:
    """A key that stands twice over all shards, or None.

    Args:
        shards: how many there are.
        read: gives the keys of a shard by its number; is called in threads.
        memory_bytes: what sorting may take, besides the keys of a few shards.
        tick: called with the number of shards read, after each.

    Raises:
        DataError: there is no room for the temporary file.
    """
    size = max(1, memory_bytes // _RECORD_BYTES)
    try:
        with tempfile.TemporaryFile() as file:  # without a name: it is gone with the process, even a killed one
            runs: list[_Run] = []
            for hashes, numbers in _chunks(_ahead(shards, read, tick), size=size):
                order = np.argsort(hashes, kind="stable")
                hashes, numbers = hashes[order], numbers[order]
                clash = _equal(hashes, numbers, read)
                if clash is not None:
                    return clash
                runs.append(_write(file, hashes, numbers))
            return _merge(file, runs, read, size=size) if len(runs) > 1 else None
    except OSError as error:
        raise DataError(
            f"ingest: cannot check that keys are unique: {error.strerror} in {tempfile.gettempdir()}; "
            "set TMPDIR to a folder with 12 bytes of room an image"
        ) from None


def _ahead(shards: int, read: ReadKeys, tick: Callable[[int], None] | None) -> Iterator[Sequence[str]]:
    """The keys of every shard in order; a few are read ahead."""
    waiting: deque[Future[Sequence[str]]] = deque()
    with ThreadPoolExecutor(_READERS) as pool:
        try:
            for number in range(shards):
                while len(waiting) < _READERS and number + len(waiting) < shards:
                    waiting.append(pool.submit(read, number + len(waiting)))
                yield waiting.popleft().result()
                if tick is not None:
                    tick(number + 1)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _chunks(keys: Iterator[Sequence[str]], *, size: int) -> Iterator[tuple[Hashes, Shards]]:
    """Hashes and shards of all keys, at most `size` at once."""
    hashes, numbers, held = np.empty(size, dtype=np.uint64), np.empty(size, dtype=np.uint32), 0
    for number, texts in enumerate(keys):
        new, start = _hashes(texts), 0
        while start < len(new):
            part = new[start : start + size - held]
            hashes[held : held + len(part)] = part
            numbers[held : held + len(part)] = number
            held, start = held + len(part), start + len(part)
            if held == size:
                yield hashes, numbers
                held = 0
    if held:
        yield hashes[:held], numbers[:held]


def _hashes(keys: Sequence[str]) -> Hashes:
    """Python's own hashes (SipHash): no source can choose keys that clash, and this process alone uses them."""
    return np.fromiter(map(hash, keys), dtype=np.int64, count=len(keys)).view(np.uint64)


def _write(file: BinaryIO, hashes: Hashes, numbers: Shards) -> _Run:
    edges = np.arange(1 << _BUCKET_BITS, dtype=np.uint64) << np.uint64(64 - _BUCKET_BITS)
    bounds = np.append(np.searchsorted(hashes, edges), len(hashes)).astype(np.int64)
    run = _Run(offset=file.tell(), bounds=bounds)
    file.write(hashes.tobytes())
    file.write(numbers.tobytes())
    return run


def _merge(file: BinaryIO, runs: list[_Run], read: ReadKeys, *, size: int) -> Clash | None:
    totals = np.sum([np.diff(run.bounds) for run in runs], axis=0)
    start = 0
    while start < len(totals):
        stop, records = start + 1, int(totals[start])
        while stop < len(totals) and records + totals[stop] <= size:
            records += int(totals[stop])
            stop += 1
        parts = [_slice(file, run, start, stop) for run in runs]
        hashes = np.concatenate([part[0] for part in parts])
        numbers = np.concatenate([part[1] for part in parts])
        order = np.argsort(hashes, kind="stable")
        clash = _equal(hashes[order], numbers[order], read)
        if clash is not None:
            return clash
        start = stop
    return None


def _slice(file: BinaryIO, run: _Run, start: int, stop: int) -> tuple[Hashes, Shards]:
    """The records of a run that are in the buckets from `start` to `stop`."""
    first, last, total = int(run.bounds[start]), int(run.bounds[stop]), int(run.bounds[-1])
    file.seek(run.offset + 8 * first)
    hashes = np.frombuffer(file.read(8 * (last - first)), dtype=np.uint64)
    file.seek(run.offset + 8 * total + 4 * first)
    return hashes, np.frombuffer(file.read(4 * (last - first)), dtype=np.uint32)


def _equal(hashes: Hashes, numbers: Shards, read: ReadKeys) -> Clash | None:
    """A clash among sorted records, of the first shards that have one: where hashes are equal, keys are compared."""
    places = np.flatnonzero(hashes[1:] == hashes[:-1])
    for place in places[np.lexsort((numbers[places + 1], numbers[places]))]:
        first, last = (int(np.searchsorted(hashes, hashes[place], side)) for side in ("left", "right"))
        seen: dict[str, int] = {}
        for number in np.unique(numbers[first:last]).tolist():
            for key in read(number):
                if _hashes([key])[0] != hashes[place]:
                    continue
                if key in seen:
                    return _first_clash(seen[key], number, read)
                seen[key] = number
    return None


def _first_clash(first: int, second: int, read: ReadKeys) -> Clash:
    """Of all keys that two shards share, the one that comes first in the second."""
    seen = set[str]() if first == second else set(read(first))
    for key in read(second):
        if key in seen:
            return Clash(key, first, second)
        if first == second:
            seen.add(key)
    raise DataError("ingest: a table of fingerprints changed while keys were compared; run the same command again")
