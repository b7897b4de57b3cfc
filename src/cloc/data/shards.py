"""Shards: immutable WebDataset tars, written byte for byte the same from the same samples, read as a stream."""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from cloc.data.schema import IMAGE_SUFFIXES, Shard
from cloc.data.storage import Storage
from cloc.errors import DataError

_KEY = re.compile(r"^[A-Za-z0-9_\-]{1,200}$")


@dataclass(frozen=True)
class Sample:
    """One image of a shard as it lies there.

    Attributes:
        key: unique in the data set: letters, digits, "_" and "-".
        image: the encoded image file.
        suffix: "jpg", "png" or "webp".
        meta: the sample's JSON: alt_text, source, licence, width, height, ...
    """

    key: str
    image: bytes
    suffix: str = "jpg"
    meta: Mapping[str, Any] = field(default_factory=dict)


class ShardWriter:
    """Collects samples and writes them as one tar. Raises DataError for a bad or repeated key."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(  # noqa: SIM115 (closed by `write`)
            fileobj=self._buffer, mode="w", format=tarfile.USTAR_FORMAT
        )
        self._keys: set[str] = set()

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, sample: Sample) -> None:
        """Appends a sample."""
        if not _KEY.match(sample.key):
            raise DataError(f"key {sample.key!r}: use 1 to 200 letters, digits, '_' and '-'")
        if sample.key in self._keys:
            raise DataError(f"key {sample.key!r} stands twice in a shard")
        if sample.suffix not in IMAGE_SUFFIXES:
            raise DataError(f"{sample.key}: images are {', '.join(IMAGE_SUFFIXES)}, got {sample.suffix!r}")
        self._keys.add(sample.key)
        self._file(f"{sample.key}.{sample.suffix}", sample.image)
        meta = json.dumps(dict(sample.meta), sort_keys=True, ensure_ascii=False)
        self._file(f"{sample.key}.json", meta.encode())

    def _file(self, name: str, body: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(body)
        self._tar.addfile(info, io.BytesIO(body))

    def write(self, storage: Storage, name: str) -> Shard:
        """Closes the tar, writes it whole as images/<name>.tar and returns its manifest entry."""
        self._tar.close()
        body = self._buffer.getvalue()
        path = f"images/{name}.tar"
        storage.write_bytes(path, body)
        digest = hashlib.sha256(body).hexdigest()
        return Shard(name=name, path=path, images=len(self), bytes=len(body), sha256=digest)


def read_shard(stream: BinaryIO, *, source: str) -> Iterator[Sample]:
    """Samples of a tar, streamed in order; members of one sample are neighbours, as WebDataset demands.

    Raises:
        DataError: the tar is truncated or not a tar, or a sample has no image; names `source`.
    """
    key, parts = "", dict[str, bytes]()
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                stem, _, suffix = member.name.partition(".")
                if stem != key and parts:
                    yield _sample(key, parts, source=source)
                    parts = {}
                key = stem
                body = tar.extractfile(member)
                assert body is not None
                parts[suffix.lower()] = body.read()
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{source}: not a readable tar ({error})") from None
    if parts:
        yield _sample(key, parts, source=source)


def _sample(key: str, parts: Mapping[str, bytes], *, source: str) -> Sample:
    suffix = next((item for item in IMAGE_SUFFIXES if item in parts), None)
    if suffix is None:
        raise DataError(f"{source}: sample {key!r} has no image ({', '.join(IMAGE_SUFFIXES)})")
    try:
        meta = json.loads(parts.get("json", b"{}"))
    except ValueError:
        raise DataError(f"{source}: sample {key!r} has broken JSON") from None
    return Sample(key=key, image=parts[suffix], suffix=suffix, meta=meta)
