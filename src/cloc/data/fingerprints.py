"""The fingerprints of a data set's images, by which duplicates are found: made with the images, or afterwards here."""

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cloc.data import tables
from cloc.data.dataset import Dataset
from cloc.data.images import CheckedImage, check_image
from cloc.data.processes import in_order, processes_of
from cloc.data.schema import Manifest, Shard
from cloc.data.storage import Storage, open_storage
from cloc.errors import DataError

_PROGRESS_S = 8.0
_MAX_PIXELS = 1 << 28  # a bomb stays shut; what is in a data set was judged by its own limit when it was made


@dataclass(frozen=True)
class Fingerprints:
    """A shard's fingerprints, in the order of its samples. N images.

    Attributes:
        keys_N: strings.
        sha256_N4: the hashes of the files as four words each.
        phash_N: the perceptual hashes.
    """

    keys_N: pa.StringArray
    sha256_N4: npt.NDArray[np.uint64]
    phash_N: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.phash_N)


@dataclass(frozen=True)
class MadeFingerprints:
    """What `ensure` did.

    Attributes:
        shards: tables made.
        undecodable: images of these shards that have no fingerprint, since they cannot be decoded.
    """

    shards: int
    undecodable: int


def row(key: str, body: bytes, phash: int) -> dict[str, Any]:
    """A row of the table.

    Args:
        key: of the sample.
        body: its encoded file, as it lies in the tar.
        phash: as `cloc.data.images` gives it.
    """
    return {"key": key, "sha256": hashlib.sha256(body).digest(), "phash": phash}


def is_made(storage: Storage, shard: Shard) -> bool:
    """Whether the shard's table is there and was made of its tar."""
    info = tables.table_info(storage, "fingerprints", shard.name)
    return info is not None and info.input_hash == shard.sha256


def missing(dataset: Dataset) -> list[Shard]:
    """Shards without fingerprints."""
    return [shard for shard in dataset.manifest.shards if not is_made(dataset.images, shard)]


def read(dataset: Dataset, shard: Shard) -> Fingerprints:
    """A shard's fingerprints. Raises DataError when they are absent, broken, or more than the shard has images."""
    table = tables.read_table(dataset.images, "fingerprints", shard.name).combine_chunks()
    if len(table) > shard.images:
        path = tables.table_path("fingerprints", shard.name)
        raise DataError(f"{dataset.images.url}/{path}: {len(table)} rows for {shard.images} images; make it again")
    if table.column("sha256").null_count or table.column("phash").null_count:
        path = tables.table_path("fingerprints", shard.name)
        raise DataError(f"{dataset.images.url}/{path}: rows without a hash; make it again")
    sha256 = b"".join(table.column("sha256").to_pylist())
    return Fingerprints(
        keys_N=pa.array(table.column("key").to_pylist(), type=pa.string()),
        sha256_N4=np.frombuffer(sha256, dtype=np.uint64).reshape(-1, 4),
        phash_N=table.column("phash").to_numpy(),
    )


def ensure(dataset: Dataset, *, processes: int) -> MadeFingerprints:
    """Makes the tables that are missing, several shards at a time; a run that was killed goes on where it stopped.

    Args:
        dataset: the tables are written beside its images.
        processes: 0 takes one a core.

    Raises:
        DataError: a shard cannot be read, or a table not be written.
    """
    todo = missing(dataset)
    undecodable = 0
    started = printed = time.monotonic()
    made = in_order(
        partial(_make, dataset.images.url),
        todo,
        processes=processes_of(processes),
        what="fingerprints",
        setting="data.processes",
    )
    for done, count in enumerate(made, start=1):
        undecodable += count
        if time.monotonic() - printed >= _PROGRESS_S or done == len(todo):
            printed = time.monotonic()
            print(f"fingerprints: {done} of {len(todo)} shards after {printed - started:.0f} s", flush=True)
    return MadeFingerprints(shards=len(todo), undecodable=undecodable)


def _make(url: str, shard: Shard) -> int:
    """Makes a shard's table and returns how many images are not in it."""
    storage = open_storage(url)
    dataset = Dataset(images=storage, manifest=Manifest(shards=(shard,)), captions=storage, regions=storage)
    rows: list[Mapping[str, Any]] = []
    undecodable = 0
    for sample in dataset.read_samples(shard):
        image = check_image(sample.image, min_side=1, max_pixels=_MAX_PIXELS, reencode=False)
        if isinstance(image, CheckedImage):
            rows.append(row(sample.key, sample.image, image.phash))
        else:
            undecodable += 1  # what reads the images quarantines it, with the reason
    write(storage, shard, rows)
    return undecodable


def write(storage: Storage, shard: Shard, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a shard's table."""
    tables.write_table(storage, "fingerprints", shard.name, rows, input_hash=shard.sha256)
