"""What a test split says itself: human captions and human boxes, read from the data set's own tables.

Never from the tables that labelling wrote: what a model was trained on is no truth to test it by.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cloc.boxes import problem
from cloc.data.dataset import Dataset, resolve_split
from cloc.data.schema import MANIFEST
from cloc.data.storage import open_storage
from cloc.errors import DataError
from cloc.evaluation.grounding import unambiguous

HUMAN = "human"


@dataclass(frozen=True)
class Region:
    """A labelled box: xyxy in [0, 1] of the original image, its class ("" without) and its text ("" without)."""

    box: tuple[float, float, float, float]
    label: str
    text: str


@dataclass(frozen=True)
class ImageTruth:
    """What is known of an image.

    Attributes:
        captions: human captions, in order.
        regions: human boxes, in order.
        phrases: numbers of the regions whose text the grounding protocol asks for.
        ambiguous: regions with a text that stands more than once in the image.
    """

    captions: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    phrases: tuple[int, ...] = ()
    ambiguous: int = 0


@dataclass(frozen=True)
class Split:
    """A test split, its images unread.

    Attributes:
        name: of the split.
        dataset: the open data set.
        classes: names to choose from, in order.
        truth: what is known, by image key.
        bad_boxes: labelled boxes that cannot be used (degenerate, outside the image), left out.
    """

    name: str
    dataset: Dataset
    classes: tuple[str, ...]
    truth: Mapping[str, ImageTruth]
    bad_boxes: int


def open_splits(data: str | Path, names: tuple[str, ...]) -> list[Split]:
    """Opens the splits of a collection; a single data set serves as the first one alone.

    Raises:
        DataError: a split is not there, has no human captions or no labelled human boxes, or has a label that is not
            among its manifest's classes.
    """
    if not names:
        raise DataError("data.test_splits is empty; name at least one split to evaluate")
    if open_storage(data).exists(MANIFEST):
        names = names[:1]
    return [_open(resolve_split(data, name), name) for name in names]


def _open(url: str, name: str) -> Split:
    dataset = Dataset.open(url)
    truth: dict[str, ImageTruth] = {}
    bad_boxes = 0
    for shard in dataset.manifest.shards:
        captions, regions = dataset.rows("captions", shard), dataset.rows("regions", shard)
        for key in captions.keys() | regions.keys():
            human = [row for row in regions.get(key, []) if row["source"] == HUMAN]
            usable = [row for row in human if problem(_box(row)) is None]
            bad_boxes += len(human) - len(usable)
            texts = [row["text"] for row in captions.get(key, []) if row["kind"] == HUMAN and row["text"].strip()]
            found = tuple(Region(_box(row), row["label"].strip(), row["text"].strip()) for row in usable)
            asked = tuple(unambiguous([region.text for region in found]))
            with_text = sum(bool(region.text) for region in found)
            truth[key] = ImageTruth(tuple(texts), found, asked, with_text - len(asked))
    labels = {region.label for item in truth.values() for region in item.regions if region.label}
    captioned = any(item.captions for item in truth.values())
    if not labels or not captioned:
        lacks = "labelled human boxes" if not labels else "human captions"
        raise DataError(f"{url}: the test split {name!r} has no {lacks} to test against; add them or leave it out")
    return Split(name, dataset, _classes(dataset, labels, url=url), truth, bad_boxes)


def _box(row: Mapping[str, float]) -> tuple[float, float, float, float]:
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
