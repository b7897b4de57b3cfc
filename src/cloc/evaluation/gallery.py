"""Pictures of the report: which items are shown, drawn at random and never by hand, and what stands beside them.

Boxes are drawn by the page over the picture, in percent of its sides, so that they need no pixels here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from cloc.boxes import problem
from cloc.data.dataset import Dataset
from cloc.data.transforms import decode
from cloc.evaluation import heatmap, region_retrieval
from cloc.evaluation.features import Items
from cloc.evaluation.metrics import SplitResult
from cloc.evaluation.models import EvaluatedModel, Reader
from cloc.evaluation.truth import Split
from cloc.pages.pictures import data_url, fit

SEED = 0
_SIDE = 480  # longest side of a picture in the page, pixels
_SMALL = 0.1  # share of a side
_BOXES = 8  # labelled boxes shown an image
_QUALITY = 80  # of JPEG

RIGHT, WRONG = "right", "wrong"


@dataclass(frozen=True)
class Picture:
    """An image in the page: a data URI and its sides in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Box:
    """A box over a picture: xyxy in [0, 1]; `kind` is its style, `tag` stands at its corner."""

    x1: float
    y1: float
    x2: float
    y2: float
    kind: str
    tag: str = ""

    @property
    def tag_place(self) -> str:
        """Where the tag goes: "above" a box that it would hide, where there is room, else "inside"."""
        small = min(self.x2 - self.x1, self.y2 - self.y1) < _SMALL
        return "above" if small and self.y1 > _SMALL else "inside"

    @property
    def style(self) -> str:
        """Position in percent of the picture."""
        width, height = self.x2 - self.x1, self.y2 - self.y1
        return f"left:{100 * self.x1:.3f}%;top:{100 * self.y1:.3f}%;width:{100 * width:.3f}%;height:{100 * height:.3f}%"


@dataclass(frozen=True)
class Named:
    """What two models call a box: the right name, and each model's with whether it is right."""

    tag: str
    label: str
    candidate: str
    candidate_right: bool
    baseline: str = ""
    baseline_right: bool = False


@dataclass(frozen=True)
class RegionCard:
    """An image with labelled boxes."""

    key: str
    boxes: tuple[Box, ...]
    names: tuple[Named, ...]
    hidden: int


@dataclass(frozen=True)
class GroundingCard:
    """A phrase with its labelled and its predicted box; `valid` is False where the model's corners span no box."""

    key: str
    phrase: str
    boxes: tuple[Box, ...]
    iou: float
    right: bool
    valid: bool


@dataclass(frozen=True)
class RetrievalCard:
    """A query and what came first; `truth` is the right answer where that was another.

    `direction` is "i2t" (the query is the image `key`), "r2t" (the query is its region `boxes`) or "t2i" (the query is
    `text`, `key` was found, `true_key` is right).
    """

    direction: str
    right: bool
    key: str
    text: str
    truth: str = ""
    true_key: str = ""
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Asked:
    """A phrase that a heat map is drawn for, and the labelled boxes that it names."""

    key: str
    phrase: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Panel:
    """A heat map by a reader of a model: cosines from `low` to `high`; `hit` where the highest lies in a labelled box.

    `peak` is the style of the mark at the highest, in percent of the picture.
    """

    model: str
    reader: str
    picture: Picture
    low: float
    high: float
    hit: bool
    peak: str


@dataclass(frozen=True)
class HeatCard:
    """A phrase over an image, by one model or two."""

    asked: Asked
    panels: tuple[Panel, ...]


def region_cards(
    split: Split, result: SplitResult, *, candidate: tuple[str, str], baseline: tuple[str, str] | None, count: int
) -> list[RegionCard]:
    """Images drawn among those with labelled regions; of each, its largest boxes.

    Args:
        candidate, baseline: (model, reader) of the rows that are shown; one alone, or two.
    """
    items = result.items
    own, other = result.recognitions[candidate], result.recognitions[baseline] if baseline else None
    by_image: dict[int, list[int]] = {}
    for region, image in enumerate(items.label_images):
        by_image.setdefault(image, []).append(region)
    cards: list[RegionCard] = []
    for image in _draw(sorted(by_image), count):
        truth = split.truth[items.keys[image]]
        found = [(region, truth.regions[items.label_places[region]]) for region in by_image[image]]
        found.sort(key=lambda pair: -(pair[1].box[2] - pair[1].box[0]) * (pair[1].box[3] - pair[1].box[1]))
        boxes: list[Box] = []
        names: list[Named] = []
        for tag, (region, labelled) in enumerate(found[:_BOXES], start=1):
            a, right = int(own.predicted[region]), bool(own.predicted[region] == items.labels[region])
            boxes.append(Box(*labelled.box, kind=RIGHT if right else WRONG, tag=str(tag)))
            names.append(
                Named(
                    tag=str(tag),
                    label=labelled.label,
                    candidate=split.classes[a],
                    candidate_right=right,
                    baseline=split.classes[int(other.predicted[region])] if other else "",
                    baseline_right=bool(other and other.predicted[region] == items.labels[region]),
                )
            )
        cards.append(RegionCard(items.keys[image], tuple(boxes), tuple(names), len(found) - len(names)))
    return cards


def grounding_cards(result: SplitResult, *, model: str, threshold: float, count: int) -> list[GroundingCard]:
    """Phrases drawn at random, at most one an image."""
    items = result.items
    cards: list[GroundingCard] = []
    seen: set[int] = set()
    for phrase in _draw(range(len(items.phrases)), len(items.phrases)):
        if len(cards) == count:
            break
        if items.phrase_images[phrase] in seen:
            continue
        seen.add(items.phrase_images[phrase])
        x1, y1, x2, y2 = (float(value) for value in result.boxes[model][phrase])
        iou = float(result.iou[model][phrase])
        boxes = [Box(*items.phrase_boxes[phrase], kind="labelled")]
        valid = problem((x1, y1, x2, y2)) is None
        if valid:
            boxes.append(Box(x1, y1, x2, y2, kind="predicted"))
        key = items.keys[items.phrase_images[phrase]]
        cards.append(GroundingCard(key, items.phrases[phrase], tuple(boxes), iou, iou >= threshold, valid))
    return cards


def retrieval_cards(split: Split, result: SplitResult, *, model: str, count: int) -> list[RetrievalCard]:
    """Queries of both ways drawn at random, a quarter of `count` for each of right and wrong."""
    if model not in result.retrievals:
        return []
    items, scores = result.items, result.retrievals[model]
    texts = list(items.captions)
    each = max(1, count // 4) if count else 0
    cards: list[RetrievalCard] = []
    ways = (("i2t", scores.image_to_text), ("t2i", scores.text_to_image))
    for direction, way in ways:
        for right in (True, False):
            pool = np.flatnonzero(way.credit == 1 if right else way.credit == 0)
            for query in _draw(pool.tolist(), each):
                nearest = int(way.nearest[query])
                if direction == "i2t":
                    key = items.keys[int(result.captioned[query])]
                    truth = "" if right else split.truth[key].captions[0]
                    cards.append(RetrievalCard(direction, right, key, texts[items.caption_text[nearest]], truth))
                else:
                    key = items.keys[int(result.captioned[nearest])]
                    own = items.keys[items.caption_image[query]]
                    text = texts[items.caption_text[query]]
                    cards.append(RetrievalCard(direction, right, key, text, true_key="" if right else own))
    return cards


def region_text_cards(split: Split, result: SplitResult, *, row: tuple[str, str], count: int) -> list[RetrievalCard]:
    """Boxes drawn at random, and the text of the split's regions that came first for each, right and wrong ones.

    Args:
        row: (model, reader) that looked for them.
        count: as in `retrieval_cards`.
    """
    if row not in result.region_retrievals:
        return []
    items, way = result.items, result.region_retrievals[row].region_to_text
    texts = region_retrieval.distinct(items.named).texts
    each = max(1, count // 4) if count else 0
    cards: list[RetrievalCard] = []
    for right in (True, False):
        pool = np.flatnonzero(way.credit == 1 if right else way.credit == 0)
        for region in _draw(pool.tolist(), each):
            image = items.named_images[region]
            key = items.keys[image]
            # The rows of an image's distinct boxes follow each other, in the order of `boxes`.
            place = items.named_rows[region] - int(np.searchsorted(items.box_images, image))
            box = Box(*list(split.truth[key].boxes)[place], kind="labelled")
            truth = "" if right else items.named[region]
            cards.append(RetrievalCard("r2t", right, key, texts[int(way.nearest[region])], truth, boxes=(box,)))
    return cards


def asked_phrases(split: Split, items: Items, *, count: int) -> list[Asked]:
    """Phrases drawn at random, at most one an image; class names of labelled regions where the split has no phrases.

    They are those of `grounding_cards`, which draws in the same order.
    """
    found: dict[str, Asked] = {}
    named = bool(items.phrases)
    images = items.phrase_images if named else items.label_images
    for number in _draw(range(len(images)), len(images)):
        if len(found) == count:
            break
        key = items.keys[images[number]]
        if named:
            boxes = [items.phrase_boxes[number]]
            phrase = items.phrases[number]
        else:
            phrase = split.classes[items.labels[number]]
            boxes = [region.box for region in split.truth[key].regions if region.label == phrase]
        found.setdefault(key, Asked(key, phrase, tuple(Box(*box, kind="labelled") for box in boxes)))
    return list(found.values())


def heat_cards(
    asked: Sequence[Asked],
    images: Mapping[str, Image.Image],
    readers: Sequence[tuple[EvaluatedModel, Reader]],
    *,
    batch_size: int,
) -> list[HeatCard]:
    """The heat map of each phrase by each (model, reader).

    Args:
        asked: the phrases.
        images: RGB images by key.
        batch_size: as in `heatmap.similarity`.
    """
    cards: list[HeatCard] = []
    for item in asked:
        panels: list[Panel] = []
        for model, reader in readers:
            heat = heatmap.similarity(model, reader, images[item.key], [item.phrase], batch_size=batch_size)[0]
            shown = fit(images[item.key], side=_SIDE, enlarge=False)
            x, y = heat.peak
            panels.append(
                Panel(
                    model.name,
                    reader,
                    picture(heatmap.paint(shown, heat)),
                    float(heat.values_YX.min()),
                    float(heat.values_YX.max()),
                    any(box.x1 <= x <= box.x2 and box.y1 <= y <= box.y2 for box in item.boxes),
                    f"left:{100 * x:.3f}%;top:{100 * y:.3f}%",
                )
            )
        cards.append(HeatCard(item, tuple(panels)))
    return cards


def load_images(dataset: Dataset, keys: Iterable[str], *, side: int = _SIDE) -> dict[str, Image.Image]:
    """The images of these keys, RGB; shards are streamed until all are found.

    Args:
        side: a JPEG may be decoded smaller, with a long side of at least so many pixels.
    """
    wanted = set(keys)
    found: dict[str, Image.Image] = {}
    for shard in dataset.manifest.shards:
        if wanted <= found.keys():
            break
        for sample in dataset.read_samples(shard):
            if sample.key in wanted:
                found[sample.key] = decode(sample.image, at_least=max(_SIDE, side))
    return found


def picture(image: Image.Image) -> Picture:
    """An RGB image as a JPEG inside the page, made small where it is large."""
    small = fit(image, side=_SIDE, enlarge=False)
    return Picture(data_url(small, quality=_QUALITY), small.width, small.height)


def keys_of(
    regions: Sequence[RegionCard], groundings: Sequence[GroundingCard], retrievals: Sequence[RetrievalCard]
) -> set[str]:
    """Keys of all pictures that the cards show."""
    keys = {card.key for card in regions} | {card.key for card in groundings} | {card.key for card in retrievals}
    return keys | {card.true_key for card in retrievals if card.true_key}


def _draw(pool: Sequence[int], count: int) -> list[int]:
    """`count` of the pool at random, or all of it."""
    order: npt.NDArray[np.intp] = np.random.default_rng(SEED).permutation(len(pool))
    return [int(pool[place]) for place in order[:count]]
