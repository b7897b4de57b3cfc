"""Statistics of labelled shards: the paper's Table 1 (regions an image, words a region's text, words a caption)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_REASONS = 1_000  # different reasons that are counted apart: enough to name the commonest, whatever the data holds


@dataclass(frozen=True)
class ShardStats:
    """One shard in numbers.

    Attributes:
        images: number of samples.
        skipped: whether its labels stood already.
        labelled: images with at least one row that is not alt-text.
        rows, words: rows that are not alt-text, and the words of their texts.
        quarantined: images refused by this stage.
        refused_items: single captions or boxes left out.
        reasons: why images were refused, and how often.
    """

    images: int
    skipped: bool
    labelled: int
    rows: int
    words: int
    quarantined: int
    refused_items: int
    reasons: Mapping[str, int]

    @classmethod
    def of(
        cls,
        stage: str,
        rows: Sequence[Mapping[str, Any]],
        quarantine: Sequence[Mapping[str, Any]],
        *,
        images: int,
        skipped: bool,
    ) -> "ShardStats":
        """Counts a shard's rows of the stage's table and of the quarantine table."""
        made = [row for row in rows if row.get("kind") != "alt_text"]
        reasons = Counter(row["reason"] for row in quarantine if row["stage"] == stage)
        return cls(
            images=images,
            skipped=skipped,
            labelled=len({row["key"] for row in made}),
            rows=len(made),
            words=sum(len(row["text"].split()) for row in made),
            quarantined=sum(reasons.values()),
            refused_items=sum(row["stage"] == f"{stage}/item" for row in quarantine),
            reasons=reasons,
        )


@dataclass
class Totals:
    """Sums over shards; the fields are those of `ShardStats`."""

    images: int = 0
    skipped: int = 0
    labelled: int = 0
    rows: int = 0
    words: int = 0
    quarantined: int = 0
    refused_items: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, shard: ShardStats) -> None:
        """Adds a shard."""
        self.images += shard.images
        self.skipped += shard.images if shard.skipped else 0
        self.labelled += shard.labelled
        self.rows += shard.rows
        self.words += shard.words
        self.quarantined += shard.quarantined
        self.refused_items += shard.refused_items
        for reason, count in shard.reasons.items():
            known = reason in self.reasons or len(self.reasons) < _REASONS
            self.reasons[reason if known else "other reasons"] += count

    @property
    def rows_per_image(self) -> float:
        """Captions or regions an image, over the images that were not refused."""
        return self.rows / max(1, self.images - self.quarantined)

    @property
    def words_per_row(self) -> float:
        """Words a caption or a region's text."""
        return self.words / max(1, self.rows)

    @property
    def counts(self) -> dict[str, int]:
        """Counts as a stage reports them."""
        return {
            "images": self.images,
            "skipped": self.skipped,
            "labelled": self.labelled,
            "quarantined": self.quarantined,
            "refused_items": self.refused_items,
        }
