"""What is encoded: images of a shard or of a chunk of a classification set, and what is asked of them.

Tasks are values that can be pickled: worker processes open the images themselves.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from cloc.data.dataset import Dataset
from cloc.data.schema import Manifest, Shard
from cloc.data.storage import open_storage
from cloc.evaluation.class_parts import Chunk
from cloc.evaluation.truth import ImageTruth


class Images(Protocol):
    """Where images come from: a value that can be pickled."""

    @property
    def digest(self) -> str:
        """Hash of their content."""

    def read(self) -> Iterator[tuple[str, bytes]]:
        """Key and encoded file of each, in order. Raises DataError when they cannot be read."""


@dataclass(frozen=True)
class ShardImages:
    """The images of a data set's shard."""

    url: str
    shard: Shard

    @property
    def digest(self) -> str:
        """See `Images`."""
        return self.shard.content

    def read(self) -> Iterator[tuple[str, bytes]]:
        """See `Images`."""
        storage = open_storage(self.url)
        dataset = Dataset(images=storage, manifest=Manifest(shards=(self.shard,)), captions=storage, regions=storage)
        for sample in dataset.read_samples(self.shard):
            yield sample.key, sample.image


@dataclass(frozen=True)
class ClassImages:
    """The images of a chunk of a classification set."""

    chunk: Chunk

    @property
    def digest(self) -> str:
        """See `Images`."""
        return self.chunk.digest

    def read(self) -> Iterator[tuple[str, bytes]]:
        """See `Images`."""
        for image in self.chunk.read():
            yield image.key, image.body


@dataclass(frozen=True)
class Task:
    """Some images, and what is asked of them.

    Attributes:
        split: name of the split, for errors.
        images: where they come from.
        count: about how many there are.
        truth: what is known, by key; images that are not in it are passed over. None takes every image, by itself.
    """

    split: str
    images: Images
    count: int
    truth: Mapping[str, ImageTruth] | None = None

    @property
    def texts(self) -> list[str]:
        """The distinct texts to encode, in order."""
        return list(dict.fromkeys(text for item in (self.truth or {}).values() for text in item.texts))
