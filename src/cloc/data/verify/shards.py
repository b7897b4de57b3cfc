"""One shard against its entry in the manifest: by size, by what the store or the record knows, or by reading it."""

import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cloc.data import tables
from cloc.data.dataset import Dataset
from cloc.data.schema import INGEST_STAGE, LEFT_OUT, Shard
from cloc.data.storage import Entry, Past, Storage, StorageError
from cloc.data.verify.outcomes import Look, Outcome, trouble
from cloc.data.verify.record import Record
from cloc.data.verify.report import Difference, Kind, Way
from cloc.errors import ClocError, DataError
from cloc.stage import fingerprint

_PIECE = 1 << 20


class Stopped(ClocError):  # noqa: N818 (an end, not a fault)
    """The verification ended before this shard was read through."""


@dataclass(frozen=True)
class ShardCheck:
    """How shards are verified.

    Attributes:
        dataset: the images by the manifest that they are held against.
        record: of what was read.
        fresh: neither the record nor the store is believed: what is hashed is read.
        stop: whether to give up.
    """

    dataset: Dataset
    record: Record
    fresh: bool
    stop: threading.Event

    def look(self, shard: Shard, entry: Entry, storage: Storage, *, hashed: bool) -> Outcome | Look:
        """What is known of a shard, or how to find out.

        Args:
            shard: by the manifest.
            entry: of the listing.
            storage: in which it lies.
            hashed: whether its hash is wanted; else its size will do.
        """
        if entry.size != shard.bytes:
            return lambda: self._wrong_size(shard, entry, storage, hashed=hashed)
        if not hashed:
            return _verified(shard, Way.SIZE)
        known = "" if self.fresh else self.record.find(_url(storage, entry.path), entry.version)
        if known == shard.sha256 and not shard.left_out:
            return _verified(shard, Way.RECORD)
        return lambda: self._hash(shard, entry, storage, known=known)

    def missing(self, shard: Shard, path: str, storage: Storage, *, hashed: bool) -> Outcome:
        """A shard that is not in the listing."""
        found = Difference(Kind.MISSING, shard.path, detail=self._older(shard, path, storage, read=hashed))
        return Outcome((found,), shards=1, bytes=shard.bytes)

    def _wrong_size(self, shard: Shard, entry: Entry, storage: Storage, *, hashed: bool) -> Outcome:
        details = [self._broken(shard)] if hashed else []
        details.append(self._older(shard, entry.path, storage, read=hashed))
        found = Difference(
            Kind.SIZE,
            shard.path,
            expected=shard.bytes,
            found=entry.size,
            unit="bytes",
            detail="; ".join(filter(None, details)),
        )
        return Outcome((found,), shards=1, bytes=shard.bytes)

    def _hash(self, shard: Shard, entry: Entry, storage: Storage, *, known: str) -> Outcome:
        read = 0
        try:
            way, sha256 = Way.RECORD, known
            if not known and not self.fresh:
                way, sha256 = Way.STORE, storage.stored_sha256(entry.path)
            if not sha256:
                with storage.open(entry.path) as stream:
                    way, sha256 = Way.READ, self._sha256(stream)
                read = entry.size
                if storage.version(entry.path) != entry.version:
                    found = Difference(Kind.CHANGING, shard.path, detail="it was written while it was verified")
                    return Outcome((found,), shards=1, bytes=shard.bytes, read=read)
                self.record.add(_url(storage, entry.path), entry.version, sha256)
        except StorageError as error:
            return Outcome((trouble(error, shard.path),), shards=1, bytes=shard.bytes)
        if sha256 == shard.sha256:
            unlike = self._left_out(shard)
            if unlike:
                return Outcome((unlike,), shards=1, bytes=shard.bytes, read=read)
            return _verified(shard, way, read=read)
        details = (self._broken(shard), self._older(shard, entry.path, storage, read=True))
        found = Difference(
            Kind.SHA256, shard.path, expected=shard.sha256, found=sha256, detail="; ".join(filter(None, details))
        )
        return Outcome((found,), shards=1, bytes=shard.bytes, read=read)

    def _sha256(self, stream: BinaryIO) -> str:
        digest = hashlib.sha256()
        while piece := stream.read(_PIECE):
            digest.update(piece)
            if self.stop.is_set():
                raise Stopped("stopped")
        return digest.hexdigest()

    def _broken(self, shard: Shard) -> str:
        """Why a shard that differs cannot be read as what the manifest says; "" when it can."""
        try:
            for _ in self.dataset.read_samples(shard):
                if self.stop.is_set():
                    raise Stopped("stopped")
        except DataError as error:
            return str(error).removeprefix(f"{self.dataset.source(shard)}: ")
        return ""

    def _older(self, shard: Shard, path: str, storage: Storage, *, read: bool) -> str:
        """Which version that the storage keeps is the one of the manifest; "" when none is."""
        try:
            for past in storage.past(path):
                if past.size == shard.bytes and (not read or self._is(shard, past, path, storage)):
                    how = "is the one of the manifest" if read else "has the right size"
                    return f"version {past.version_id} of {past.modified} {how}"
        except StorageError as error:
            return f"older versions cannot be looked at ({error})"
        return ""

    def _is(self, shard: Shard, past: Past, path: str, storage: Storage) -> bool:
        with storage.open_past(path, past.version_id) as stream:
            return self._sha256(stream) == shard.sha256

    def _left_out(self, shard: Shard) -> Difference | None:
        """Where the quarantine table leaves out other samples of a foreign tar than those that the manifest means."""
        if not shard.left_out:
            return None
        path = tables.table_path("quarantine", shard.name)
        try:
            rows = tables.read_table(self.dataset.images, "quarantine", shard.name).to_pylist()
        except DataError as error:
            return Difference(Kind.TABLE, path, detail=str(error))
        mine = (row for row in rows if row["stage"] == INGEST_STAGE and row["reason"].startswith(LEFT_OUT))
        found = fingerprint(sorted({row["key"] for row in mine}))
        if found == shard.left_out:
            return None
        return Difference(
            Kind.TABLE, path, expected=shard.left_out, found=found, detail="it leaves out other samples of the tar"
        )


def _verified(shard: Shard, way: Way, *, read: int = 0) -> Outcome:
    return Outcome(way=way, shards=1, bytes=shard.bytes, read=read)


def _url(storage: Storage, path: str) -> str:
    """What an object is called in the record, from whatever folder it is verified."""
    root = storage.url if "://" in storage.url else str(Path(storage.url).absolute())
    return f"{root}/{path}"
