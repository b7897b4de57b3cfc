"""Shards: immutable WebDataset tars, written byte for byte the same from the same samples, read as a stream."""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from cloc.data.schema import IMAGE_SUFFIXES, Shard
from cloc.data.storage import Storage
from cloc.data.tar import BrokenTarError, TarStream
from cloc.errors import DataError

# A USTAR header holds 100 characters of a name without folders: 95 leave room for ".webp" and ".json".
MAX_KEY = 95
_KEY = re.compile(rf"[A-Za-z0-9_\-]{{1,{MAX_KEY}}}")
_NOT_IN_KEY = re.compile(r"[^A-Za-z0-9_\-]")


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


def safe_key(stem: str) -> str:
    """A name without its suffix as a key.

    Names with letters outside ASCII, or too long for a tar, get a hash of the name behind them: they stay apart.
    """
    key = _NOT_IN_KEY.sub("_", stem)
    if stem.isascii() and len(key) <= MAX_KEY:
        return key
    digest = hashlib.sha256(stem.encode(errors="surrogateescape")).hexdigest()[:12]
    return f"{key[: MAX_KEY - len(digest) - 1]}-{digest}"


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
        if not _KEY.fullmatch(sample.key):
            raise DataError(f"key {sample.key!r}: use 1 to {MAX_KEY} letters, digits, '_' and '-'")
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

    def finish(self) -> bytes:
        """Closes the tar and returns it; nothing can be added any more."""
        self._tar.close()
        return self._buffer.getvalue()

    def write(self, storage: Storage, name: str) -> Shard:
        """Closes the tar, writes it whole as images/<name>.tar and returns its manifest entry."""
        body = self.finish()
        path = f"images/{name}.tar"
        storage.write_bytes(path, body)
        digest = hashlib.sha256(body).hexdigest()
        return Shard(name=name, path=path, images=len(self), bytes=len(body), sha256=digest)


def read_shard(stream: BinaryIO, *, source: str, images: int | None = None) -> Iterator[Sample]:
    """Samples of a tar, streamed in order; members of one sample are neighbours, as WebDataset demands.

    Args:
        stream: the tar, read front to back.
        source: what to call it in errors.
        images: how many samples it must have, where that is known.

    Raises:
        DataError: the tar is empty, truncated or not a tar, has another number of samples, or a sample has a bad key
            or no image; names `source`.
    """
    found = 0
    try:
        for sample in _samples(TarStream(stream, source=source), source=source):
            found += 1
            yield sample
    except BrokenTarError as error:
        raise DataError(f"{source}: empty, truncated or not a tar: {error.reason}; write this shard again") from None
    if not found:
        raise DataError(f"{source}: empty shard (a tar without samples); leave it out of the manifest")
    if images is not None and found != images:
        raise DataError(f"{source}: {found} samples, the manifest says {images}; write this shard again")


def _samples(tar: TarStream, *, source: str) -> Iterator[Sample]:
    key, parts = "", dict[str, bytes]()
    for name in tar:
        stem, _, suffix = name.partition(".")
        if not _KEY.fullmatch(stem):
            raise DataError(_bad_key(name, source=source))
        if stem != key and parts:
            yield _sample(key, parts, source=source)
            parts = {}
        key = stem
        parts[suffix.lower()] = tar.read()
    if parts:
        yield _sample(key, parts, source=source)
    tar.finish()


def _sample(key: str, parts: Mapping[str, bytes], *, source: str) -> Sample:
    suffix = next((item for item in IMAGE_SUFFIXES if item in parts), None)
    if suffix is None:
        raise DataError(_no_image(key, source=source))
    try:
        meta = json.loads(parts.get("json", b"{}"))
    except ValueError:
        meta = None
    if not isinstance(meta, dict):
        raise DataError(f"{source}: sample {key!r} has broken JSON")
    return Sample(key=key, image=parts[suffix], suffix=suffix, meta=meta)


def read_images(stream: BinaryIO, *, source: str, want: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Key and encoded image of a tar's samples, without their JSON; the bodies of unwanted samples are skipped.

    Args:
        stream: the tar, read front to back.
        source: what to call it in errors.
        want: asked once for every sample, by its key, in order.

    Raises:
        DataError: not a tar, truncated, a sample has a bad key, or a wanted one has no image; names `source`.
    """
    tar = TarStream(stream, source=source)
    key, wanted, best, image = "", False, len(IMAGE_SUFFIXES), b""
    for name in tar:
        stem, _, suffix = name.partition(".")
        if stem != key or not stem:
            if wanted:
                yield key, _found(image, key, source=source)
            if not _KEY.fullmatch(stem):
                raise DataError(_bad_key(name, source=source))
            key, wanted, best, image = stem, want(stem), len(IMAGE_SUFFIXES), b""
        if wanted and suffix.lower() in IMAGE_SUFFIXES[:best]:
            best, image = IMAGE_SUFFIXES.index(suffix.lower()), tar.read()
    if wanted:
        yield key, _found(image, key, source=source)


def _found(image: bytes, key: str, *, source: str) -> bytes:
    if not image:
        raise DataError(_no_image(key, source=source))
    return image


def _bad_key(name: str, *, source: str) -> str:
    return f"{source}: member {name[:100]!r} has no key of 1 to {MAX_KEY} letters, digits, _ and -"


def _no_image(key: str, *, source: str) -> str:
    return f"{source}: sample {key!r} has no image ({', '.join(IMAGE_SUFFIXES)})"
