"""Images that occur twice: in the set itself, or in a test split as well, as the fingerprints of ingest tell."""

from collections.abc import Sequence
from dataclasses import dataclass

from cloc.config import Config
from cloc.data.dataset import Dataset
from cloc.data.duplicates import DuplicateCounts, count_duplicates, count_leaked
from cloc.data.schema import MANIFEST
from cloc.data.storage import open_storage
from cloc.validation.results import Example

DUPLICATES, LEAKED = "set/duplicate_images", "set/leaked_images"


@dataclass(frozen=True)
class Occurrences:
    """What there is to say of duplicates.

    Attributes:
        numbers: `duplicate_images` and `leaked_images` (shares), as far as they are known.
        examples: images, by check.
        has_tests: whether there are test splits to leak into; without any, leakage is no question.
    """

    numbers: dict[str, float]
    examples: dict[str, tuple[Example, ...]]
    has_tests: bool


def count_occurrences(config: Config, dataset: Dataset, *, data: str) -> Occurrences:
    """Counts duplicates within a data set, and images of the test splits that are in it.

    Args:
        config: `data.test_splits` and `data.near_duplicate_bits` are read.
        dataset: the training data.
        data: where it was found: a collection has its test splits beside it.

    Raises:
        DataError: fingerprints are broken.
    """
    bits, numbers, examples = config.data.near_duplicate_bits, dict[str, float](), dict[str, tuple[Example, ...]]()
    tests = _test_splits(config, data)
    own = count_duplicates(dataset, bits=bits)
    if own is not None:
        numbers["duplicate_images"] = own.share
        examples[DUPLICATES] = _examples(own, split=config.data.train_split, how="like")
    found = {name: count_leaked(dataset, test, bits=bits) for name, test in tests.items()}
    known = {name: counts for name, counts in found.items() if counts is not None}
    if known and len(known) == len(found):
        leaked = sum(counts.exact + counts.near for counts in known.values())
        numbers["leaked_images"] = leaked / max(1, sum(counts.images for counts in known.values()))
        examples[LEAKED] = tuple(
            example for name, counts in known.items() for example in _examples(counts, split=name, how="in training as")
        )
    return Occurrences(numbers, examples, has_tests=bool(tests))


def _test_splits(config: Config, data: str) -> dict[str, Dataset]:
    storage = open_storage(data)
    if storage.exists(MANIFEST):  # a data set and no collection
        return {}
    names: Sequence[str] = [name for name in config.data.test_splits if storage.exists(f"{name}/{MANIFEST}")]
    return {name: Dataset.open(f"{data.rstrip('/')}/{name}") for name in names}


def _examples(counts: DuplicateCounts, *, split: str, how: str) -> tuple[Example, ...]:
    return tuple(Example(shard=split, key=key, value=f"{how} {other}", row=-1) for key, other in counts.examples)
