"""Statistics of labelled shards: the paper's Table 1 (regions an image, words a region's text, words a caption).

A shard's statistics lie in the metadata of its table, so that the whole set's are known without reading any rows.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

_REASONS = 1_000  # different reasons that are counted apart: enough to name the commonest, whatever the data holds


@dataclass(frozen=True)
class ShardStats:
    """One shard in numbers.

    Attributes:
        images: number of samples.
        labelled: images with at least one row that is not alt-text.
        rows, words: rows that are not alt-text, and the words of their texts.
        quarantined: images refused by this stage.
        refused_items: single captions or boxes left out.
        reasons, item_reasons: why images and items were refused, and how often.
        counts: what the labeler counted besides (`Labels.counts`), summed.
    """

    images: int
    labelled: int
    rows: int
    words: int
    quarantined: int
    refused_items: int
    reasons: Mapping[str, int] = field(default_factory=dict)
    item_reasons: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        rows: Sequence[Mapping[str, Any]],
        *,
        images: int,
        reasons: Sequence[str],
        item_reasons: Sequence[str],
        counts: Mapping[str, int],
    ) -> "ShardStats":
        """Counts a shard's rows of the stage's table, and why images and items of it were refused."""
        made = [row for row in rows if row.get("kind") != "alt_text"]
        return cls(
            images=images,
            labelled=len({row["key"] for row in made}),
            rows=len(made),
            words=sum(len(row["text"].split()) for row in made),
            quarantined=len(reasons),
            refused_items=len(item_reasons),
            reasons=dict(_counted(Counter(reasons))),
            item_reasons=dict(_counted(Counter(item_reasons))),
            counts=dict(counts),
        )

    def to_json(self) -> str:
        """As JSON, equal for equal numbers."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "ShardStats":
        """From the parsed JSON of `to_json`."""
        return cls(**body)


@dataclass
class Totals:
    """Sums over shards; the fields are those of `ShardStats`.

    Attributes:
        shards: number of shards.
        skipped: images whose labels stood already.
    """

    shards: int = 0
    images: int = 0
    skipped: int = 0
    labelled: int = 0
    rows: int = 0
    words: int = 0
    quarantined: int = 0
    refused_items: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    item_reasons: Counter[str] = field(default_factory=Counter)
    more_counts: Counter[str] = field(default_factory=Counter)

    def add(self, shard: ShardStats, *, skipped: bool = False) -> None:
        """Adds a shard."""
        self.shards += 1
        self.images += shard.images
        self.skipped += shard.images if skipped else 0
        self.labelled += shard.labelled
        self.rows += shard.rows
        self.words += shard.words
        self.quarantined += shard.quarantined
        self.refused_items += shard.refused_items
        self.reasons = _counted(self.reasons + Counter(shard.reasons))
        self.item_reasons = _counted(self.item_reasons + Counter(shard.item_reasons))
        self.more_counts.update(shard.counts)

    @property
    def rows_per_image(self) -> float:
        """Captions or regions an image, over the images that were not refused."""
        return self.rows / max(1, self.images - self.quarantined)

    @property
    def words_per_row(self) -> float:
        """Words a caption or a region's text."""
        return self.words / max(1, self.rows)

    @property
    def coverage(self) -> float:
        """Share of the images that are labelled."""
        return self.labelled / max(1, self.images)

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


def _counted(reasons: Counter[str]) -> Counter[str]:
    """The commonest reasons; the others are one."""
    if len(reasons) <= _REASONS:
        return reasons
    kept = Counter(dict(reasons.most_common(_REASONS - 1)))
    kept["other reasons"] += reasons.total() - kept.total()
    return kept
