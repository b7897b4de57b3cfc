"""Numbers of the whole data set, summed shard by shard in memory that does not grow with it."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from cloc.pages.charts import Histogram
from cloc.validation.frames import ShardFrames

# Texts that the search for the most common caption remembers: its count is too low by at most 1 / CAPACITY of all.
CAPACITY = 2000
_TEXT_CUT = 2000


class CommonTexts:
    """The most common of a stream of texts with bounded memory (mergeable Misra-Gries summary)."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._counts: Counter[str] = Counter()

    def add(self, texts: Iterable[str]) -> None:
        """Counts a shard's texts; long ones by their beginning."""
        self._counts.update(text[:_TEXT_CUT] for text in texts)
        if len(self._counts) > self._capacity:
            spare = self._counts.most_common(self._capacity + 1)[-1][1]
            self._counts = Counter({text: count - spare for text, count in self._counts.items() if count > spare})

    def top(self) -> tuple[str, int]:
        """The most common text and (a lower bound of) how often it came; ("", 0) when there was none."""
        return self._counts.most_common(1)[0] if self._counts else ("", 0)


def _regions_histogram() -> Histogram:
    labels = (*(str(number) for number in range(12)), "12+")
    return Histogram("Regions an image", labels, tuple(float(number) for number in range(14)))


def _words_histogram() -> Histogram:
    labels = ("0", "1-4", "5-9", "10-14", "15-19", "20-29", "30-49", "50-99", "100+")
    return Histogram("Words a caption (without alt-text)", labels, (0, 1, 5, 10, 15, 20, 30, 50, 100, 1e9))


def _area_histogram() -> Histogram:
    labels = ("<0.1%", "<0.5%", "<1%", "<2%", "<5%", "<10%", "<20%", "<50%", "≤100%")
    edges = (0, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.001)
    return Histogram("Area of a box, share of its image", labels, edges)


def _score_histogram() -> Histogram:
    labels = tuple(f"{number / 10:.1f}" for number in range(10))
    return Histogram("Score of a region, from", labels, (*(number / 10 for number in range(10)), 1.001))


@dataclass
class Summary:
    """Sums over the shards seen so far.

    Attributes:
        refused: images that ingest quarantined (they are in no shard).
        images, captions, alt_texts, regions: rows; `captions` are those that are not alt-text.
        captioned, with_regions: images that have such a row.
        lost: images that a labelling stage gave up on.
        common: the most common caption.
    """

    refused: int = 0
    shards: int = 0
    images: int = 0
    captions: int = 0
    alt_texts: int = 0
    regions: int = 0
    known_regions: int = 0
    captioned: int = 0
    with_regions: int = 0
    lost: int = 0
    common: CommonTexts = field(default_factory=CommonTexts)
    histograms: dict[str, Histogram] = field(
        default_factory=lambda: {
            "regions_per_image": _regions_histogram(),
            "caption_words": _words_histogram(),
            "box_area": _area_histogram(),
            "score": _score_histogram(),
        }
    )

    def add(self, frames: ShardFrames) -> None:
        """Adds a shard."""
        images, regions = frames.images, frames.regions
        real = frames.captions[frames.captions["kind"] != "alt_text"]
        self.shards += 1
        self.images += len(images)
        self.captions += len(real)
        self.alt_texts += len(frames.captions) - len(real)
        self.regions += len(regions)
        self.known_regions += int((regions["images_with_key"] > 0).sum())
        self.captioned += int(images["has_caption"].sum())
        self.with_regions += int((images["n_regions"] > 0).sum())
        self.lost += frames.lost
        self.common.add(real["text"])
        self.histograms["regions_per_image"].add(images["n_regions"].to_numpy(dtype=np.float64))
        self.histograms["caption_words"].add(real["words"].to_numpy(dtype=np.float64))
        sides = (regions[["x2", "y2"]].to_numpy() - regions[["x1", "y1"]].to_numpy()).clip(min=0)
        self.histograms["box_area"].add(sides.prod(axis=1))
        self.histograms["score"].add(regions["score"].to_numpy(dtype=np.float64))

    @property
    def quarantined(self) -> int:
        """Images that cannot be used: refused at ingest or given up by a labelling stage."""
        return self.refused + self.lost

    def numbers(self) -> dict[str, float]:
        """The row that the checks of the whole set judge; needs at least one image."""
        return {
            "images": float(self.images),
            "caption_coverage": self.captioned / self.images,
            "region_coverage": self.with_regions / self.images,
            "regions_per_image": self.known_regions / self.images,
            "top_caption_share": self.common.top()[1] / max(self.captions, 1),
            "quarantined_share": self.quarantined / (self.images + self.refused),
        }
