"""Which images are tuned on and which are asked about: no image is both."""

import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from cloc.config.schema import DataConfig
from cloc.data.dataset import Dataset, LabeledSample, resolve_split
from cloc.errors import ConfigError, DataError

_HELD_OUT = 10  # of a data set without a test split, one image in so many is kept for the test


@dataclass(frozen=True)
class Splits:
    """Training and test data.

    Attributes:
        train, test: with captions and regions.
        test_name: of the test split.
        held_out: both are one data set, of which a tenth, by the key, is for the test.
    """

    train: Dataset
    test: Dataset
    test_name: str
    held_out: bool

    def is_trained_on(self, key: str, image: bytes) -> bool:
        """Whether an image of the training data, by key and encoded, may be tuned on.

        Raises:
            DataError: it is a test image as well.
        """
        if self.held_out:
            return not _is_held_out(key)
        self.check(key, image, source=self.train.images.url)
        return True

    def check(self, key: str, image: bytes, *, source: str) -> None:
        """Raises DataError when an image is one of the test."""
        if (twin := self._test_images.get(sha256(image).digest())) is not None:
            raise DataError(
                f"{source}: image {key!r} is {twin!r} of the test split {self.test_name}; "
                "take it out of the training data (`cloc data duplicates` lists all)"
            )

    @property
    def test_keys(self) -> Collection[str]:
        """Keys of the test images."""
        return set(self._test_images.values())

    def test_samples(self) -> Iterator[LabeledSample]:
        """The test images."""
        return (sample for sample in self.test.read_all() if not self.held_out or _is_held_out(sample.sample.key))

    @cached_property
    def _test_images(self) -> dict[bytes, str]:
        return {sha256(sample.sample.image).digest(): sample.sample.key for sample in self.test_samples()}


def _is_held_out(key: str) -> bool:
    return zlib.crc32(key.encode()) % _HELD_OUT == 0


def open_splits(config: DataConfig, *, data: str, captions: str, regions: str) -> Splits:
    """Opens both.

    Args:
        config: section `data`, which names the splits; the first test split is asked about.
        data: a data set, or a collection with a train and a test split.
        captions, regions: roots of the training split's tables.

    Raises:
        ConfigError: no test split is named.
        DataError: one is not there.
    """
    if not config.test_splits:
        raise ConfigError("data.test_splits is empty; name the split that the adapter is evaluated on")
    train, test = (resolve_split(data, name) for name in (config.train_split, config.test_splits[0]))
    labelled = Dataset.open(train, captions=captions, regions=regions)
    if train == test:
        return Splits(labelled, labelled, "the held-out tenth", held_out=True)
    return Splits(labelled, Dataset.open(test), config.test_splits[0], held_out=False)
