"""One labelled image as the report shows it: the picture with its boxes, captions, phrases, and what people said."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cloc import boxes
from cloc.data.shards import Sample
from cloc.labeling import quality
from cloc.labeling.detectors import Region
from cloc.labeling.images import BadImageError, decode
from cloc.labeling.names import Names, words_of
from cloc.pages.pictures import COLORS, Mark, data_url, draw, fit

_SIDE = 600  # long side of a picture, pixels: about twice what the page gives it
_LINE, _TAG = 4, 27  # width of lines and height of tags in it, pixels
_QUALITY = 82
_MOST_REGIONS, _MOST_HUMAN, _MOST_MISSED = 14, 40, 8
_CAPTIONS = {"generated": 4, "human": 3, "alt_text": 1}  # how many of each kind, in this order
_CAPTION_CUT, _PHRASE_CUT = 600, 80
_HUMAN_COLOR = "#ffffff"

# How a found box stands beside people's: "" where the image has no human boxes to compare with.
Verdict = Literal["", "right", "other name", "no human box"]


@dataclass(frozen=True)
class CaptionLine:
    """A caption beside a picture."""

    kind: str
    text: str


@dataclass(frozen=True)
class RegionLine:
    """A region beside a picture; `told` is what people call the box that it is matched to."""

    number: int
    color: str
    text: str
    score: str
    verdict: Verdict
    told: str


@dataclass(frozen=True)
class Card:
    """One picture of the report; all text is untrusted.

    Attributes:
        key, shard, size: which image it is.
        source: the picture as a data URL; "" when it cannot be shown.
        captions: generated ones first, alt-text last.
        regions: the surest first.
        more_regions: how many are not shown.
        missed: names of human boxes that nothing was found for, each with how often.
        more_missed: how many of these boxes are not named.
    """

    key: str
    shard: str
    size: str
    source: str
    captions: tuple[CaptionLine, ...]
    regions: tuple[RegionLine, ...]
    more_regions: int
    missed: tuple[str, ...]
    more_missed: int


Rows = Sequence[Mapping[str, Any]]


def make_card(
    sample: Sample, *, shard: str, captions: Rows, regions: Rows, human: Rows, names: Names, max_pixels: int
) -> Card:
    """Draws an image with its labels.

    Args:
        sample: the image.
        shard: its shard's name.
        captions, regions: its rows of these tables; none where the stage does not make or read them.
        human: rows of human boxes to compare with; none where there are none, or nothing to compare.
        names: what the classes are called.
        max_pixels: larger images are not decoded.
    """
    found = sorted((_region(row) for row in regions), key=lambda region: -region.score)
    truth = quality.usable(human)
    partners = quality.match(found, boxes.as_boxes([quality.box_of(row) for row in truth]))
    lines = tuple(
        _line(number, region, truth[partners[number]] if number in partners else None, names, judged=bool(truth))
        for number, region in enumerate(found[:_MOST_REGIONS])
    )
    matched = set(partners.values())
    missed = Counter(quality.class_of(row) for number, row in enumerate(truth) if number not in matched)
    size, source = _picture(sample.image, found[:_MOST_REGIONS], lines, truth[:_MOST_HUMAN], max_pixels=max_pixels)
    return Card(
        key=sample.key,
        shard=shard,
        size=size,
        source=source,
        captions=_captions(captions),
        regions=lines,
        more_regions=max(0, len(found) - _MOST_REGIONS),
        missed=tuple(_times(name, count) for name, count in list(missed.items())[:_MOST_MISSED]),
        more_missed=sum(list(missed.values())[_MOST_MISSED:]),
    )


def _region(row: Mapping[str, Any]) -> Region:
    return Region(
        box=quality.box_of(row), text=row["text"], score=row["score"], source=row["source"], label=row["label"]
    )


def _line(number: int, region: Region, partner: Mapping[str, Any] | None, names: Names, *, judged: bool) -> RegionLine:
    told = quality.class_of(partner) if partner else ""
    right = partner is not None and names.named(told, words_of(region.text or region.label))
    verdict: Verdict = "right" if right else "other name" if partner else "no human box"
    return RegionLine(
        number=number + 1,
        color=COLORS[number % len(COLORS)],
        text=_cut(region.text, _PHRASE_CUT),
        score=f"{region.score:.2f}",
        verdict=verdict if judged else "",
        told=_cut(told, _PHRASE_CUT),
    )


def _captions(rows: Rows) -> tuple[CaptionLine, ...]:
    shown = [row for kind, most in _CAPTIONS.items() for row in [row for row in rows if row["kind"] == kind][:most]]
    return tuple(CaptionLine(row["kind"], _cut(row["text"], _CAPTION_CUT)) for row in shown)


def _picture(
    body: bytes, found: Sequence[Region], lines: Sequence[RegionLine], human: Rows, *, max_pixels: int
) -> tuple[str, str]:
    """Size of the original as text, and the drawn image as a data URL; the page says when it cannot be shown."""
    try:
        image = decode(body, min_side=1, max_pixels=max_pixels)
    except BadImageError:
        return "", ""
    size = f"{image.width} x {image.height}"
    image = fit(image, side=_SIDE)
    marks = [Mark(region.box, line.color, str(line.number), _LINE) for region, line in zip(found, lines, strict=True)]
    # People's boxes below: where both are the same, the found one is seen.
    marks += [Mark(quality.box_of(row), _HUMAN_COLOR, width=_LINE - 1, dashed=True) for row in human]
    draw(image, marks, tag_height=_TAG)
    return size, data_url(image, quality=_QUALITY)


def _times(name: str, count: int) -> str:
    return _cut(name, _PHRASE_CUT) + (f" ({count})" if count > 1 else "")


def _cut(text: str, length: int) -> str:
    return f"{text[:length]}…" if len(text) > length else text
