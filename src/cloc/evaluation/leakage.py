"""How many images of a test split the models may have been trained on: a figure is worth as much as this is small."""

from dataclasses import asdict, dataclass
from typing import Any

from cloc.config import Config
from cloc.data.dataset import Dataset
from cloc.data.duplicates import count_leaked
from cloc.data.schema import MANIFEST
from cloc.data.storage import open_storage
from cloc.evaluation.truth import Split


@dataclass(frozen=True)
class Leakage:
    """Test images that occur in the training split.

    Attributes:
        split: the training split.
        images: of the test split.
        exact, near: of them, those whose file, or whose picture almost, is trained on.
        bits: differing bits of perceptual hashes up to which pictures are near.
        examples: the first few as (key, key of the training image).
    """

    split: str
    images: int
    exact: int
    near: int
    bits: int
    examples: tuple[tuple[str, str], ...]


def measure(config: Config, split: Split, *, data: str) -> dict[str, Any] | None:
    """The leakage into a test split as JSON, or None where it cannot be told.

    That is where `data` is a single data set, so that nobody knows what was trained on, and where a shard of either
    split has no fingerprints.

    Args:
        config: `data.train_split` and `data.near_duplicate_bits` are read.
        split: the test split.
        data: what is evaluated, as given.

    Raises:
        DataError: fingerprints are broken.
    """
    storage, train, bits = open_storage(data), config.data.train_split, config.data.near_duplicate_bits
    if storage.exists(MANIFEST) or not storage.exists(f"{train}/{MANIFEST}") or train == split.name:
        return None
    found = count_leaked(Dataset.open(f"{data.rstrip('/')}/{train}"), split.dataset, bits=bits)
    if found is None:
        return None
    return asdict(Leakage(train, found.images, found.exact, found.near, bits, found.examples))
