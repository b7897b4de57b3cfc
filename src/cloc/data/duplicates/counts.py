"""How many images of a data set are duplicates: of others in it, or of another data set's (leakage)."""

from dataclasses import dataclass

from cloc.data import fingerprints
from cloc.data.dataset import Dataset
from cloc.data.duplicates.search import search

_EXAMPLES = 5


@dataclass(frozen=True)
class DuplicateCounts:
    """Duplicates of a data set.

    Attributes:
        images: that were looked at.
        exact: of them, those whose file occurs again.
        near: of the others, those whose picture occurs again, almost.
        examples: the first few as (key, key of what it duplicates).
    """

    images: int
    exact: int
    near: int
    examples: tuple[tuple[str, str], ...]

    @property
    def share(self) -> float:
        """Share of the images that are duplicates."""
        return (self.exact + self.near) / self.images if self.images else 0.0


def count_duplicates(dataset: Dataset, *, bits: int) -> DuplicateCounts | None:
    """How many images occur already earlier in their data set; None when a shard has no fingerprints.

    Args:
        dataset: the data set.
        bits: differing bits of perceptual hashes up to which pictures are near-duplicates.

    Raises:
        DataError: fingerprints are broken.
    """
    return _count(dataset, None, bits=bits)


def count_leaked(train: Dataset, test: Dataset, *, bits: int) -> DuplicateCounts | None:
    """How many TEST images occur in the training data; None when a shard of either has no fingerprints.

    Args:
        train, test: the data sets.
        bits: differing bits of perceptual hashes up to which pictures are near-duplicates.

    Raises:
        DataError: fingerprints are broken.
    """
    return _count(test, train, bits=bits)


def _count(dataset: Dataset, other: Dataset | None, *, bits: int) -> DuplicateCounts | None:
    for item in (dataset, other):
        if item is not None and fingerprints.missing(item):
            return None
    exact = near = 0
    examples: list[tuple[str, str]] = []
    for _, found in search(dataset, other=other, bits=bits):
        exact += sum(duplicate.exact for duplicate in found)
        near += sum(not duplicate.exact for duplicate in found)
        examples += [(duplicate.key, duplicate.of_key) for duplicate in found[: _EXAMPLES - len(examples)]]
    return DuplicateCounts(dataset.manifest.images, exact, near, tuple(examples))
