"""The data behind the page: a data set by the contract, or a folder of images, of which the first N are shown.

Images are read in chunks of one size, which are also what the index is made of and kept by. A sample is named by its
number; where it lies is known here alone. Thumbnails are kept in the cache of features, beside the index.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from cloc.boxes import problem
from cloc.data.dataset import Dataset, resolve_split
from cloc.data.images import decode_untrusted
from cloc.data.schema import IMAGE_SUFFIXES, MANIFEST, Shard
from cloc.data.storage import open_storage
from cloc.errors import DataError
from cloc.evaluation.cache import Arrays, FeatureCache
from cloc.evaluation.tasks import Images
from cloc.playground import limits
from cloc.playground.engine import Box
from cloc.playground.pictures import as_jpeg
from cloc.stage import fingerprint

CHUNK = 32  # images
THUMBNAIL = 320  # pixels, long side
_THUMBNAILS = 1  # version of what is kept
_SUFFIXES = (*IMAGE_SUFFIXES, "jpeg")


@dataclass(frozen=True)
class Known:
    """What a data set's tables say of an image: boxes that can be used and their texts, and a caption ("" for none)."""

    boxes: tuple[Box, ...] = ()
    texts: tuple[str, ...] = ()
    caption: str = ""


@dataclass(frozen=True)
class FolderImages:
    """Files of a folder. The hash is of names, sizes and times: reading each file to see whether it changed would take
    as long as encoding it on an accelerator.
    """

    folder: Path
    names: tuple[str, ...]

    @property
    def digest(self) -> str:
        """See `Images`."""
        stats = [(name, (self.folder / name).stat()) for name in self.names]
        return fingerprint([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])

    def read(self) -> Iterator[tuple[str, bytes]]:
        """See `Images`."""
        for name in self.names:
            try:
                yield name, (self.folder / name).read_bytes()
            except OSError as error:
                raise DataError(f"{self.folder / name}: cannot be read ({error.strerror})") from None


@dataclass(frozen=True)
class RangeImages:
    """Samples `first` to `last`, without it, of a data set's shard."""

    dataset: Dataset
    shard: Shard
    first: int
    last: int

    @property
    def digest(self) -> str:
        """See `Images`."""
        return fingerprint([self.shard.content, self.first, self.last])

    def read(self) -> Iterator[tuple[str, bytes]]:
        """See `Images`."""
        place = -1

        def want(key: str) -> bool:
            nonlocal place
            place += 1
            return self.first <= place < self.last

        opened = self.dataset.open_images(self.shard)
        try:
            yield from islice(opened.read(want), self.last - self.first)
        finally:
            opened.close()


@dataclass(frozen=True)
class Sample:
    """An image of the data that could be decoded.

    Attributes:
        chunk: it is in.
        key: in the data set, or file below the folder.
        width, height: pixels.
        thumbnail: a small JPEG.
        known: of it.
    """

    chunk: "Chunk"
    key: str
    width: int
    height: int
    thumbnail: bytes
    known: Known

    def read(self) -> bytes:
        """The encoded image. Raises DataError when it is no longer there."""
        for key, body in self.chunk.images.read():
            if key == self.key:
                return body
        raise DataError(f"{self.key}: no longer in the data; start the playground again")


@dataclass(frozen=True)
class Chunk:
    """Some images, and what is known of them."""

    images: Images
    known: Mapping[str, Known] = field(default_factory=dict)

    def samples(self, cache: FeatureCache) -> list[Sample]:
        """Those that can be decoded, in order; their thumbnails are kept."""
        key = fingerprint([_THUMBNAILS, THUMBNAIL, limits.IMAGE_PIXELS, self.images.digest])
        arrays = cache.get(key)
        if arrays is None:
            arrays = self._thumbnails()
            cache.put(key, arrays)
        names, ends = json.loads(arrays["names"].tobytes()), arrays["ends"].tolist()
        body, starts = arrays["thumbnails"].tobytes(), [0, *ends[:-1]]
        return [
            Sample(self, name, width, height, body[start:end], self.known.get(name, Known()))
            for name, (width, height), start, end in zip(names, arrays["sizes"].tolist(), starts, ends, strict=True)
        ]

    def _thumbnails(self) -> Arrays:
        names, sizes, files = list[str](), list[tuple[int, int]](), list[bytes]()
        for key, body in self.images.read():
            image = decode_untrusted(body, max_pixels=limits.IMAGE_PIXELS)
            if isinstance(image, str):
                print(f"playground: {key}: {image}; left out", flush=True)
                continue
            names.append(key)
            sizes.append(image.size)
            files.append(as_jpeg(image, side=THUMBNAIL, quality=80))
        return {
            "names": np.frombuffer(json.dumps(names).encode(), dtype=np.uint8),
            "sizes": np.array(sizes, dtype=np.int64).reshape(-1, 2),
            "ends": np.cumsum([len(file) for file in files], dtype=np.int64),
            "thumbnails": np.frombuffer(b"".join(files), dtype=np.uint8),
        }


@dataclass(frozen=True)
class Collection:
    """The data, its images unread.

    Attributes:
        name: as it was given.
        images: how many are shown and searched.
        total: how many there are.
    """

    name: str
    images: int
    total: int
    chunks: Sequence[Chunk]


def open_collection(data: str, *, limit: int) -> Collection:
    """Opens a data set, a collection (its split "test") or a folder of images, of which `limit` images are taken.

    Raises:
        DataError: it is none of these, or there is no image.
    """
    folder = Path(data)
    storage = open_storage(data)
    if storage.exists(MANIFEST) or storage.exists(f"test/{MANIFEST}"):
        return _of_dataset(data, Dataset.open(resolve_split(data, "test")), limit=limit)
    if not folder.is_dir():
        raise DataError(f"{data}: neither a data set (there is no {MANIFEST}) nor a folder of images")
    names = sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.suffix.lower().removeprefix(".") in _SUFFIXES and path.is_file()
    )
    if not names:
        raise DataError(f"{data}: no image in this folder ({', '.join(_SUFFIXES)})")
    taken = names[:limit]
    chunks = [Chunk(FolderImages(folder, tuple(taken[first : first + CHUNK]))) for first in range(0, len(taken), CHUNK)]
    return Collection(data, len(taken), len(names), chunks)


def _of_dataset(name: str, dataset: Dataset, *, limit: int) -> Collection:
    if not dataset.manifest.images:
        raise DataError(f"{name}: a data set without images")
    chunks, left = list[Chunk](), limit
    for shard in dataset.manifest.shards:
        count = min(left, shard.images)
        if not count:
            break
        known = _known(dataset, shard)
        for first in range(0, count, CHUNK):
            chunks.append(Chunk(RangeImages(dataset, shard, first, min(first + CHUNK, count)), known))
        left -= count
    return Collection(name, min(limit, dataset.manifest.images), dataset.manifest.images, chunks)


def _known(dataset: Dataset, shard: Shard) -> dict[str, Known]:
    """What a shard's tables say: boxes that can be used, without those that only repeat one."""
    regions, captions = dataset.rows("regions", shard), dataset.rows("captions", shard)
    found = {}
    for key in dict.fromkeys((*regions, *captions)):
        boxes: dict[Box, str] = {}
        for row in regions.get(key, []):
            box = _box(row)
            if problem(box) is None and len(boxes) < limits.REGIONS:
                boxes.setdefault(box, row["text"].strip())
        caption = next((row["text"].strip() for row in captions.get(key, [])), "")
        found[key] = Known(tuple(boxes), tuple(boxes.values()), caption)
    return found


def _box(row: Mapping[str, Any]) -> Box:
    return row["x1"], row["y1"], row["x2"], row["y2"]
