"""A data set by the contract, opened: its manifest, its shards as streams, its tables joined by key.

Images and tables may lie apart: `Dataset.open("data/train", captions="work/captions", regions="work/regions")` reads
the tars of the first and the tables of the others.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cloc.data import tables
from cloc.data.foreign import read_foreign, read_foreign_images
from cloc.data.schema import INGEST_STAGE, LEFT_OUT, MANIFEST, Manifest, Shard, Table
from cloc.data.shards import Sample, read_images, read_shard
from cloc.data.storage import Storage, open_storage
from cloc.errors import DataError
from cloc.stage import fingerprint

_BY_KEY: tuple[Table, ...] = ("captions", "regions", "attributes")  # tables whose rows belong to images of the shard


@dataclass(frozen=True)
class LabeledSample:
    """A sample with its rows of the captions and regions tables (dicts by the contract's columns)."""

    sample: Sample
    captions: tuple[dict[str, Any], ...] = ()
    regions: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Dataset:
    """An open data set.

    Attributes:
        images: storage of the manifest and of the tars.
        manifest: its manifest.
        captions, regions: storages that hold these tables.
    """

    images: Storage
    manifest: Manifest
    captions: Storage
    regions: Storage

    @classmethod
    def open(
        cls, url: str | Path, *, captions: str | Path | None = None, regions: str | Path | None = None
    ) -> "Dataset":
        """Opens a data set whose tables lie beside the images unless said otherwise.

        Raises:
            DataError: there is no manifest, or it is not one.
        """
        storage = open_storage(url)
        if not storage.exists(MANIFEST):
            raise DataError(f"{url}: no data set here (there is no {MANIFEST})")
        manifest = Manifest.from_json(storage.read_bytes(MANIFEST).decode(), source=f"{url}/{MANIFEST}")
        return cls(
            images=storage,
            manifest=manifest,
            captions=open_storage(captions) if captions else storage,
            regions=open_storage(regions) if regions else storage,
        )

    @property
    def digest(self) -> str:
        """Hash of the images: of the shards' hashes in order."""
        return fingerprint([shard.content for shard in self.manifest.shards])

    def labels_digest(self) -> str:
        """Hash of the captions and regions tables; reads each of them once."""
        roots: tuple[tuple[Table, Storage], ...] = (("captions", self.captions), ("regions", self.regions))
        found = [
            (root, tables.table_path(table, shard.name)) for table, root in roots for shard in self.manifest.shards
        ]
        hashes = [hashlib.sha256(root.read_bytes(path)).hexdigest() for root, path in found if root.exists(path)]
        return fingerprint(hashes)

    def read_samples(self, shard: Shard) -> Iterator[Sample]:
        """Streams a shard's samples.

        Raises:
            DataError: the shard is empty, truncated, or does not hold the number of images that the manifest says.
        """
        source, left_out = self.source(shard), self._left_out(shard)
        with self.open_shard(shard) as stream:
            if shard.foreign:
                yield from read_foreign(stream, source=source, left_out=left_out, images=shard.images)
            else:
                yield from read_shard(stream, source=source, images=shard.images)

    def open_images(self, shard: Shard) -> "EncodedImages":
        """Opens a shard to stream its encoded images alone. Close what is returned."""
        left_out = self._left_out(shard) if shard.foreign else None
        return EncodedImages(self.open_shard(shard), source=self.source(shard), left_out=left_out)

    def source(self, shard: Shard) -> str:
        """What to call a shard's tar in errors."""
        return shard.path if shard.foreign else f"{self.images.url}/{shard.path}"

    def open_shard(self, shard: Shard) -> BinaryIO:
        """A stream over a shard's tar, front to back. Raises DataError when there is none."""
        if shard.foreign:
            folder, _, name = shard.path.rpartition("/")
            return open_storage(folder or "/").open(name)
        return self.images.open(shard.path)

    def _left_out(self, shard: Shard) -> frozenset[str]:
        """Keys of a foreign tar that are not part of the data set."""
        if not shard.left_out:
            return frozenset()
        rows = tables.read_table(self.images, "quarantine", shard.name).to_pylist()
        return frozenset(
            row["key"] for row in rows if row["stage"] == INGEST_STAGE and row["reason"].startswith(LEFT_OUT)
        )

    def rows(self, table: Table, shard: Shard) -> dict[str, list[dict[str, Any]]]:
        """A shard's table as rows by key; empty when the shard has no such table."""
        storage = {"captions": self.captions, "regions": self.regions}.get(table, self.images)
        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        if tables.has_table(storage, table, shard.name):
            for row in tables.read_table(storage, table, shard.name).to_pylist():
                found[row["key"]].append(row)
        return dict(found)

    def read(self, shard: Shard) -> Iterator[LabeledSample]:
        """Streams a shard's samples joined with their captions and regions."""
        captions, regions = self.rows("captions", shard), self.rows("regions", shard)
        for sample in self.read_samples(shard):
            yield LabeledSample(sample, tuple(captions.get(sample.key, ())), tuple(regions.get(sample.key, ())))

    def check(self, shard: Shard) -> None:
        """Reads a shard through and compares its tables' keys with its samples'.

        Raises:
            DataError: the shard cannot be read whole, or a table has rows for images that are not in it.
        """
        keys = {sample.key for sample in self.read_samples(shard)}
        for table in _BY_KEY:
            unknown = sorted(self.rows(table, shard).keys() - keys)
            if unknown:
                path = tables.table_path(table, shard.name)
                raise DataError(
                    f"{self.images.url}: {path} has {len(unknown)} keys that are not in {shard.path} "
                    f"(first: {unknown[0]!r}); it belongs to another data set or must be made again"
                )

    def read_all(self) -> Iterator[LabeledSample]:
        """Streams the whole data set, shard after shard."""
        for shard in self.manifest.shards:
            yield from self.read(shard)


class EncodedImages:
    """A shard that is open to stream its encoded images; `close` it.

    Args:
        stream: the tar, at its first byte.
        source: what to call it in errors.
        left_out: keys that are not part of the data set, for a foreign tar; None for one of the project's own.
    """

    def __init__(self, stream: BinaryIO, *, source: str, left_out: frozenset[str] | None = None) -> None:
        self._stream, self._source, self._left_out = stream, source, left_out

    def read(self, want: Callable[[str], bool]) -> Generator[tuple[str, bytes], None, None]:
        """Key and encoded image of the samples that are wanted; `want` is asked once a sample, in order, by key.

        Raises:
            DataError: the shard is broken, or a wanted sample has no image.
        """
        if self._left_out is None:
            yield from read_images(self._stream, source=self._source, want=want)
        else:
            yield from read_foreign_images(self._stream, source=self._source, left_out=self._left_out, want=want)

    def close(self) -> None:
        """Lets go of the file or connection."""
        self._stream.close()


def resolve_split(data: str | Path, split: str) -> str:
    """The data set to use: `data` itself when it is one, else the split `data/<split>` of a collection.

    Raises:
        DataError: neither is a data set.
    """
    storage = open_storage(data)
    if storage.exists(MANIFEST):
        return str(data)
    if storage.exists(f"{split}/{MANIFEST}"):
        return f"{str(data).rstrip('/')}/{split}"
    raise DataError(f"{data}: neither a data set nor a collection with a split {split!r} (there is no {MANIFEST})")


def write_manifest(storage: Storage, manifest: Manifest) -> None:
    """Writes the manifest: the last thing written, so that a data set without one is unfinished."""
    storage.write_bytes(MANIFEST, manifest.to_json().encode())
