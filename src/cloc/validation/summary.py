"""Numbers of the whole data set, summed shard by shard in memory that does not grow with it; parts can be merged."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from cloc.pages.charts import Histogram
from cloc.validation.distributions import Moments, histograms
from cloc.validation.frames import ShardFrames
from cloc.validation.sketches import CommonTexts, DistinctTexts, MostCommon

_BOX = ["x1", "y1", "x2", "y2"]
_LEAST_IMAGES = 20  # of a shard whose empty table means something
_LEAST_TEXTS = 50  # distinct captions, or regions, that a statistic of them needs
_LONG = {"characters": 40, "words": 30}  # captions shorter than this are not cut by a limit
_SEEN_WHOLE = 0.95  # share of an image that a box covers which covers all of it
_BORDER = 0.005
_PIXELS = 2.0
_SCORE_STEPS = 1000

Floats = npt.NDArray[np.float64]


@dataclass
class Summary:
    """Sums over the shards seen so far.

    Attributes:
        refused: images that ingest quarantined (they are in no shard).
        images, captions, alt_texts, regions: rows; `captions` are those that are not alt-text.
        known_regions: regions of images that are there.
        captioned, with_regions: images that have such a row.
        lost: images that a labelling stage gave up on.
        shards, full_shards, empty_shards: all; those of 20 images or more; of these, those without captions or regions.
        boxes: valid boxes: finite, inside, in order.
        pixel_boxes, whole_boxes, left, right, top, bottom: boxes that are like pixels, cover their image, touch a side.
        detected, supported, supported_near, detected_supported: regions of known images: by a model; whose text occurs
            in a text of their image, of the images beside it (0, 1 or 2); by a model and in a text of their image.
        common, texts, labels, corners: the most common caption, text of a region, class, box (in thousandths).
        sample, region_sample, keys: distinct captions, texts of regions, keys of images.
        scores: how often each score of detected regions came, in thousandths, shape (1001,).
        histograms: what the report shows and what drift is measured in.
        moments: mean and spread of the same quantities.
        extra: further numbers, found when all shards were seen.
    """

    refused: int = 0
    shards: int = 0
    full_shards: int = 0
    empty_shards: int = 0
    images: int = 0
    captions: int = 0
    alt_texts: int = 0
    regions: int = 0
    known_regions: int = 0
    captioned: int = 0
    with_regions: int = 0
    lost: int = 0
    boxes: int = 0
    pixel_boxes: int = 0
    whole_boxes: int = 0
    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0
    detected: int = 0
    detected_supported: int = 0
    supported: int = 0
    supported_near: int = 0
    common: CommonTexts = field(default_factory=CommonTexts)
    texts: CommonTexts = field(default_factory=CommonTexts)
    labels: CommonTexts = field(default_factory=CommonTexts)
    corners: MostCommon = field(default_factory=MostCommon)
    sample: DistinctTexts = field(default_factory=DistinctTexts)
    region_sample: DistinctTexts = field(default_factory=DistinctTexts)
    keys: DistinctTexts = field(default_factory=DistinctTexts)
    scores: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(_SCORE_STEPS + 1, dtype=np.int64))
    histograms: dict[str, Histogram] = field(default_factory=histograms)
    moments: dict[str, Moments] = field(default_factory=lambda: {name: Moments() for name in histograms()})
    extra: dict[str, float] = field(default_factory=dict)

    def add(self, frames: ShardFrames) -> None:
        """Adds a shard."""
        images, captions, regions = frames.images, frames.captions, frames.regions
        real = captions[captions["kind"] != "alt_text"]
        full = len(images) >= _LEAST_IMAGES
        self.shards += 1
        self.full_shards += full
        self.empty_shards += full and not (len(real) and len(regions))
        self.images += len(images)
        self.captions += len(real)
        self.alt_texts += len(captions) - len(real)
        self.regions += len(regions)
        self.captioned += int(images["has_caption"].sum())
        self.with_regions += int((images["n_regions"] > 0).sum())
        self.lost += frames.lost
        self.common.add(real["text"])
        self.sample.add(real["described"].dropna())
        self.keys.add(images["key"])
        self._measure("regions_per_image", images["n_regions"].to_numpy(dtype=np.float64))
        self._measure("image_side", images["side"].to_numpy(dtype=np.float64))
        self._measure("caption_words", real["words"].to_numpy(dtype=np.float64))
        self._add_regions(frames)
        self._add_boxes(regions[_BOX].to_numpy(dtype=np.float64))

    def _add_regions(self, frames: ShardFrames) -> None:
        regions = frames.regions
        known = regions[regions["images_with_key"] > 0]
        described, labels = regions["described"].dropna(), regions["label"].dropna()
        self.known_regions += len(known)
        self.supported += int(known["supported"].sum())
        self.supported_near += int(known["supported_near"].sum())
        self.detected += int(known["detected"].sum())
        self.detected_supported += int((known["detected"] & known["supported"]).sum())
        self.texts.add(described)
        self.region_sample.add(described)
        self.labels.add(labels[labels != ""])
        self._measure("region_words", regions["words"].to_numpy(dtype=np.float64))
        scores = regions["score"].to_numpy(dtype=np.float64)
        self._measure("score", scores)
        inside = regions["detected"].to_numpy() & (scores >= 0) & (scores <= 1)
        self.scores += np.bincount(np.rint(scores[inside] * _SCORE_STEPS).astype(np.int64), minlength=_SCORE_STEPS + 1)

    def _add_boxes(self, boxes: Floats) -> None:
        """Adds boxes, shape (N, 4); the statistics of geometry are of valid ones, since the others have rules of their
        own."""
        finite = boxes[np.isfinite(boxes).all(axis=1)]
        self.pixel_boxes += int((finite >= _PIXELS).any(axis=1).sum())
        inside = ((finite >= 0) & (finite <= 1)).all(axis=1) & (finite[:, :2] < finite[:, 2:]).all(axis=1)
        x1, y1, x2, y2 = finite[inside].T
        width, height = x2 - x1, y2 - y1
        self.boxes += len(x1)
        self.whole_boxes += int((width * height >= _SEEN_WHOLE).sum())
        # A box that spans its image says nothing of a side.
        self.left += int(((x1 <= _BORDER) & (x2 < 1 - _BORDER)).sum())
        self.right += int(((x2 >= 1 - _BORDER) & (x1 > _BORDER)).sum())
        self.top += int(((y1 <= _BORDER) & (y2 < 1 - _BORDER)).sum())
        self.bottom += int(((y2 >= 1 - _BORDER) & (y1 > _BORDER)).sum())
        thousandths = np.rint(finite[inside] * 1000).astype(np.int64)
        self.corners.add((thousandths @ np.asarray([10**12, 10**8, 10**4, 1])).tolist())
        self._measure("box_area", width * height)
        self._measure("box_center_x", (x1 + x2) / 2)
        self._measure("box_center_y", (y1 + y2) / 2)
        self._measure("box_width", width)
        self._measure("box_height", height)
        self._measure("box_aspect", np.log2(width / height))

    def _measure(self, name: str, values: Floats) -> None:
        self.histograms[name].add(values)
        self.moments[name].add(values)

    def merge(self, other: "Summary") -> None:
        """Adds what was summed over later shards. Sums over equal parts in equal order are equal to the last bit."""
        for item in fields(self):
            mine, its = getattr(self, item.name), getattr(other, item.name)
            if isinstance(mine, MostCommon | DistinctTexts):
                mine.merge(its)
            elif item.name == "histograms":
                for name, histogram in mine.items():
                    histogram.counts += its[name].counts
            elif item.name == "moments":
                for name, moments in mine.items():
                    moments.merge(its[name])
            elif item.name == "extra":
                mine.update(its)
            else:
                setattr(self, item.name, mine + its)

    @property
    def quarantined(self) -> int:
        """Images that cannot be used: refused at ingest or given up by a labelling stage."""
        return self.refused + self.lost

    def numbers(self) -> dict[str, float]:
        """The row that the checks of the whole set judge; needs at least one image. What there is nothing to tell from
        (scores of a detector where people drew the boxes) is left out."""
        found = {
            "images": float(self.images),
            "caption_coverage": self.captioned / self.images,
            "region_coverage": self.with_regions / self.images,
            "regions_per_image": self.known_regions / self.images,
            "top_caption_share": self.common.top_share,
            "repeated_captions": self.sample.repeated_share,
            "repeated_keys": self.keys.repeated_sample,
            "empty_shards": self.empty_shards / max(self.full_shards, 1),
            "quarantined_share": self.quarantined / (self.images + self.refused),
            "pixel_boxes": self.pixel_boxes / max(self.regions, 1),
            **self._box_numbers(),
            **self._text_numbers(),
            **{f"mean_{name}": moments.mean for name, moments in self.moments.items() if moments.count},
            **{f"std_{name}": moments.std for name, moments in self.moments.items() if moments.count},
            **self.extra,
        }
        return {name: float(value) for name, value in found.items()}

    def _box_numbers(self) -> dict[str, float]:
        numbers = {}
        if self.boxes >= _LEAST_TEXTS:
            offset = abs(self.moments["box_center_x"].mean - 0.5)
            numbers = {
                "same_box": self.corners.top_share,
                "whole_image_boxes": self.whole_boxes / self.boxes,
                "side_bias": max(offset, abs(self.left - self.right) / self.boxes),
                "vertical_bias": abs(self.top - self.bottom) / self.boxes,
            }
        if (scored := int(self.scores.sum())) >= _LEAST_TEXTS:
            numbers["same_score"] = int(self.scores.max()) / scored
        return numbers

    def _text_numbers(self) -> dict[str, float]:
        numbers = {}
        if self.texts.total >= _LEAST_TEXTS:
            squares = self.region_sample.sum_over(lambda counts: counts.astype(np.float64) ** 2, self.texts)
            numbers = {
                "top_text_share": self.texts.top_share,
                "effective_texts": self.texts.total**2 / max(squares, 1.0),
            }
        if self.labels.total >= _LEAST_TEXTS:
            numbers["top_label_share"] = self.labels.top_share
        if self.detected >= _LEAST_TEXTS:
            numbers["phrase_support"] = self.detected_supported / self.detected
        # Where texts of regions never occur in any text, nothing can be told from it.
        if self.known_regions >= _LEAST_TEXTS and self.supported + self.supported_near >= 0.02 * self.known_regions:
            numbers["phrase_lift"] = (self.supported - self.supported_near / 2) / self.known_regions
        if len(self.sample.texts) >= _LEAST_TEXTS:
            numbers["length_pileup"] = max(self._pileup("characters"), self._pileup("words"))
        return numbers

    def _pileup(self, unit: str) -> float:
        """Share of the sampled captions that have exactly the greatest length: 0 where that is short."""
        lengths = np.asarray([len(text) if unit == "characters" else len(text.split()) for text in self.sample.texts])
        longest = lengths.max()
        return float((lengths == longest).mean()) if longest >= _LONG[unit] else 0.0

    def to_json(self) -> dict[str, Any]:
        """JSON values that `from_json` takes."""
        body: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, MostCommon | DistinctTexts):
                value = value.to_json()
            elif item.name == "histograms":
                value = {name: histogram.counts.tolist() for name, histogram in value.items()}
            elif item.name == "moments":
                value = {name: moments.to_json() for name, moments in value.items()}
            elif item.name == "scores":
                value = value.tolist()
            body[item.name] = value
        return body

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "Summary":
        """The inverse of `to_json`."""
        summary = cls()
        for item in fields(cls):
            mine, value = getattr(summary, item.name), body[item.name]
            if isinstance(mine, MostCommon | DistinctTexts):
                value = type(mine).from_json(value)
            elif item.name == "histograms":
                for name, counts in value.items():
                    mine[name].counts += np.asarray(counts, dtype=np.int64)
                value = mine
            elif item.name == "moments":
                value = {name: Moments(**moments) for name, moments in value.items()}
            elif item.name == "scores":
                value = np.asarray(value, dtype=np.int64)
            setattr(summary, item.name, value)
        return summary
