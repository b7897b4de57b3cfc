"""What a test split says itself: human captions, human boxes and questions about them, from the data set's own tables.

Never from the tables that labelling wrote: what a model was trained on is no truth to test it by. What a split has
decides which protocols run on it.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from cloc.boxes import problem
from cloc.data.dataset import Dataset, resolve_split
from cloc.data.schema import MANIFEST, Shard
from cloc.data.storage import open_storage
from cloc.errors import DataError
from cloc.evaluation.grounding import unambiguous

HUMAN = "human"

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Region:
    """A labelled box: xyxy in [0, 1] of the original image, its class ("" without) and its text ("" without)."""

    box: Box
    label: str
    text: str


@dataclass(frozen=True)
class Question:
    """Which of these texts is a box's own?

    Attributes:
        box: xyxy in [0, 1] of the original image.
        text: its own.
        negatives: by level, texts that differ from it in attributes.
    """

    box: Box
    text: str
    negatives: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class ImageTruth:
    """What is known of an image.

    Attributes:
        captions: human captions, in order.
        regions: human boxes, in order.
        phrases: numbers of the regions whose text the grounding protocol asks for.
        ambiguous: regions with a text that stands more than once in the image.
        questions: about attributes.
    """

    captions: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    phrases: tuple[int, ...] = ()
    ambiguous: int = 0
    questions: tuple[Question, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything to test against."""
        return bool(self.captions or self.regions or self.questions)

    @cached_property
    def boxes(self) -> Mapping[Box, int]:
        """The distinct boxes of regions and questions, numbered in order: each is read once."""
        boxes = (*(region.box for region in self.regions), *(question.box for question in self.questions))
        return {box: number for number, box in enumerate(dict.fromkeys(boxes))}

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The distinct texts to encode, in order."""
        of_questions = (
            text
            for question in self.questions
            for text in (question.text, *(negative for level in question.negatives.values() for negative in level))
        )
        of_regions = (region.text for region in self.regions if region.text)
        return tuple(dict.fromkeys((*self.captions, *of_regions, *of_questions)))

    @property
    def as_json(self) -> list[Any]:
        """For hashes."""
        regions = [(region.box, region.label, region.text) for region in self.regions]
        questions = [(question.box, question.text, dict(question.negatives)) for question in self.questions]
        return [self.captions, regions, self.phrases, questions]


@dataclass(frozen=True)
class Split:
    """A test split, its images unread.

    Attributes:
        name: of the split.
        dataset: the open data set.
        classes: names to choose from, in order; empty where no box has a class.
        truth: what is known, by image key.
        bad_boxes: labelled boxes that cannot be used (degenerate, outside the image), left out.
        keys: of the images that something is known of, by shard.
    """

    name: str
    dataset: Dataset
    classes: tuple[str, ...]
    truth: Mapping[str, ImageTruth]
    bad_boxes: int
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def of_shard(self, shard: Shard) -> dict[str, ImageTruth]:
        """What is known of a shard's images."""
        return {key: self.truth[key] for key in self.keys.get(shard.name, ())}


def truth_digest(truth: Mapping[str, ImageTruth]) -> str:
    """Hash of what is known of images, hexadecimal."""
    digest = sha256()
    for key, item in truth.items():
        digest.update(json.dumps([key, item.as_json]).encode() + b"\n")
    return digest.hexdigest()


def open_splits(data: str | Path, names: tuple[str, ...]) -> list[Split]:
    """Opens the splits of a collection; a single data set serves as the first one alone.

    Raises:
        DataError: a split is not there, is empty, has nothing to test against, or has a label that is not among its
            manifest's classes.
    """
    if not names:
        raise DataError("data.test_splits is empty; name at least one split to evaluate")
    if open_storage(data).exists(MANIFEST):
        names = names[:1]
    return [_open(resolve_split(data, name), name) for name in names]


def _open(url: str, name: str) -> Split:
    dataset = Dataset.open(url)
    if not dataset.manifest.images:
        raise DataError(f"{url}: the test split {name!r} has no images; fill it or leave it out of data.test_splits")
    truth: dict[str, ImageTruth] = {}
    keys: dict[str, tuple[str, ...]] = {}
    bad: Counter[str] = Counter()
    for shard in dataset.manifest.shards:
        found = dict(_of_shard(dataset, shard, bad))
        keys[shard.name] = tuple(found)
        truth |= found
    if not truth:
        raise DataError(f"{url}: the test split {name!r} has nothing to test against: {_lacking(bad)}")
    regions = [region for item in truth.values() for region in item.regions]
    labels = {region.label for region in regions if region.label}
    if bad:
        print(f"evaluation: {name}: {bad.total()} labelled boxes left out: {_told(bad)}", flush=True)
    if regions and not labels:
        print(f"evaluation: {name}: its {len(regions)} boxes have no class names: no region recognition", flush=True)
    classes = _classes(dataset, labels, url=url) if labels else ()
    return Split(name, dataset, classes, truth, bad.total(), keys)


def _lacking(bad: Counter[str]) -> str:
    if bad:
        return f"all of its {bad.total()} labelled boxes are unusable ({_told(bad)}); boxes are xyxy in [0, 1]"
    return "no human captions, no labelled human boxes and no questions about attributes; add some or leave it out"


def _told(bad: Counter[str]) -> str:
    return ", ".join(f"{count} times {reason}" for reason, count in bad.most_common())


def _of_shard(dataset: Dataset, shard: Shard, bad: Counter[str]) -> Iterator[tuple[str, ImageTruth]]:
    """What a shard's tables say of each image that they say something of."""
    captions, regions = dataset.rows("captions", shard), dataset.rows("regions", shard)
    asked = dataset.rows("attributes", shard)
    for key in dict.fromkeys((*captions, *regions, *asked)):
        human = [row for row in regions.get(key, []) if row["source"] == HUMAN]
        texts = [row["text"] for row in captions.get(key, []) if row["kind"] == HUMAN and row["text"].strip()]
        found = tuple(
            Region(_box(row), row["label"].strip(), row["text"].strip()) for row in human if _usable(row, bad)
        )
        phrases = tuple(unambiguous([region.text for region in found]))
        with_text = sum(bool(region.text) for region in found)
        questions = _questions([row for row in asked.get(key, []) if _usable(row, bad)])
        if item := ImageTruth(tuple(texts), found, phrases, with_text - len(phrases), questions):
            yield key, item


def _usable(row: Mapping[str, Any], bad: Counter[str]) -> bool:
    reason = problem(_box(row))
    if reason is not None:
        bad[reason] += 1
    return reason is None


def _questions(rows: list[dict[str, Any]]) -> tuple[Question, ...]:
    """One question a box and text; its rows are its levels."""
    found: dict[tuple[Box, str], dict[str, tuple[str, ...]]] = {}
    for row in rows:
        levels = found.setdefault((_box(row), row["text"].strip()), {})
        levels[row["level"]] = (*levels.get(row["level"], ()), *row["negatives"])
    return tuple(Question(box, text, levels) for (box, text), levels in found.items() if text)


def _box(row: Mapping[str, float]) -> Box:
    return row["x1"], row["y1"], row["x2"], row["y2"]


def _classes(dataset: Dataset, labels: set[str], *, url: str) -> tuple[str, ...]:
    """The manifest's list where it has one, else the labels that occur, sorted."""
    listed = dataset.manifest.classes
    unknown = sorted(labels - set(listed))
    if listed and unknown:
        raise DataError(
            f"{url}/{MANIFEST}: the label {unknown[0]!r} of its regions is not among its {len(listed)} classes"
            + (f" (nor are {len(unknown) - 1} more)" if len(unknown) > 1 else "")
        )
    return tuple(dict.fromkeys(listed)) or tuple(sorted(labels))
