"""Images of the report: drawn with their numbered boxes, as data URLs, with their texts beside them.

A box that leaves its image is drawn on a grey border around it, cut where the border ends, with an arrow there.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError

from cloc.data.images import as_seen
from cloc.data.shards import Sample
from cloc.pages.pictures import COLORS, Mark, data_url, draw, fit
from cloc.validation.frames import ShardFrames, image_size

_LONG_SIDE = 480
_MOST_BOXES = 10
_MOST_CAPTIONS = 4
_TEXT_CUT = 240
_QUALITY = 82
_BAD = "#e5484d"
_AXES = ("x1", "y1", "x2", "y2")
_SIDES = ("left", "top", "right", "bottom")
# Farther out of the image, in shares of it, is outside; float32 coordinates may be this much off.
_SLACK = 1e-4
_BORDER, _BORDER_COLOR = 44, "#b4bac1"  # pixels
_ARROW = 7  # pixels
# Boxes whose shorter side is below so many pixels of the picture get a ring, to be found.
_FEW_PIXELS, _RING = 9, 16


@dataclass(frozen=True)
class Region:
    """A region beside a picture.

    Attributes:
        number: what its box is marked with.
        color: of the box, as CSS has it.
        text, score, box: readable.
        bad: whether it is shown as wrong.
        flaw: what is wrong with the box as a box; "" for nothing.
    """

    number: int
    color: str
    text: str
    score: str
    box: str
    bad: bool
    flaw: str


@dataclass(frozen=True)
class Caption:
    """A caption beside a picture."""

    kind: str
    text: str
    bad: bool


@dataclass(frozen=True)
class Picture:
    """One picture of the report; `source` is a data URL, empty when the image cannot be shown. All text untrusted."""

    key: str
    shard: str
    source: str
    size: str
    captions: tuple[Caption, ...]
    regions: tuple[Region, ...]
    more_regions: int


def make_picture(
    sample: Sample, frames: ShardFrames, *, max_pixels: int, bad: Mapping[str, Sequence[int]] | None = None
) -> Picture:
    """Draws a sample with its labels.

    Args:
        sample: the image.
        frames: its shard's tables.
        max_pixels: larger images are not decoded.
        bad: offending rows of the shard's tables ("captions", "regions") by position; shown first and in red, as is
            every box that cannot be one.
    """
    marked = {table: set(rows) for table, rows in (bad or {}).items()}
    captions = _own_rows(frames.captions, sample.key, marked.get("captions", set()))
    regions = _own_rows(frames.regions, sample.key, marked.get("regions", set()))
    alt_text = sample.meta.get("alt_text")
    listed = any(row["kind"] == "alt_text" for row in captions)
    alt = (
        (Caption("alt_text", _cut(alt_text), bad=False),)
        if isinstance(alt_text, str) and alt_text and not listed
        else ()
    )
    lines = tuple(_region(number, row) for number, row in enumerate(regions[:_MOST_BOXES], start=1))
    size = image_size(sample.image)
    return Picture(
        key=sample.key,
        shard=frames.name,
        source=_draw(sample.image, [_box(row) for row in regions[:_MOST_BOXES]], lines, max_pixels=max_pixels),
        size=f"{size.width} x {size.height} pixels" if size.width else "cannot be opened",
        captions=(*(Caption(row["kind"], _cut(row["text"]), row["bad"]) for row in captions[:_MOST_CAPTIONS]), *alt),
        regions=lines,
        more_regions=max(0, len(regions) - _MOST_BOXES),
    )


def flaw(box: Sequence[float]) -> str:
    """What is wrong with a box (xyxy, shares of the image) as a box, in a few words; "" for nothing."""
    values = np.asarray(box, dtype=np.float64)
    if not np.isfinite(values).all():
        return "not four numbers"
    flaws = []
    swapped = [axis for axis, low in (("x", 0), ("y", 1)) if values[low] > values[low + 2]]
    if swapped:
        flaws.append(f"corners swapped: {' and '.join(swapped)}")
    beyond = _beyond(values)
    if beyond.any():
        sides = ", ".join(side for side, out in zip(_SIDES, beyond, strict=True) if out)
        low, high = _ordered(values)
        whole = (high <= 0).any() or (low >= 1).any()
        flaws.append(f"{'wholly outside' if whole else 'reaches out'}: {sides}")
    return "; ".join(flaws)


def _ordered(values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    return np.minimum(values[:2], values[2:]), np.maximum(values[:2], values[2:])


def _beyond(values: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Over which sides of the image a box reaches: left, top, right, bottom."""
    low, high = _ordered(values)
    return np.concatenate([low < -_SLACK, high > 1 + _SLACK])


def _own_rows(frame: pd.DataFrame, key: str, bad: set[int]) -> list[dict[str, Any]]:
    own = frame[frame["key"] == key]
    rows = [{**row, "bad": position in bad} for position, row in zip(own.index, own.to_dict("records"), strict=True)]
    return sorted(rows, key=lambda row: not row["bad"])


def _box(row: Mapping[str, Any]) -> tuple[float, ...]:
    return tuple(float(row[axis]) for axis in _AXES)


def _region(number: int, row: Mapping[str, Any]) -> Region:
    wrong = flaw(_box(row))
    bad = bool(row["bad"] or wrong)
    return Region(
        number=number,
        color=_BAD if bad else COLORS[(number - 1) % len(COLORS)],
        text=_cut(row["text"]),
        score=f"{row['score']:.2f}" if np.isfinite(row["score"]) else "no score",
        box=", ".join(f"{value:.3g}" for value in _box(row)),
        bad=bad,
        flaw=wrong,
    )


def _cut(text: str) -> str:
    return f"{text[:_TEXT_CUT]}…" if len(text) > _TEXT_CUT else text


def _draw(body: bytes, boxes: Sequence[tuple[float, ...]], lines: Sequence[Region], *, max_pixels: int) -> str:
    size = image_size(body)
    if not size.width or not size.height or size.width * size.height > max_pixels:
        return ""
    try:
        image = as_seen(Image.open(io.BytesIO(body)))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return ""  # the page says that it cannot be shown
    image = fit(image, side=_LONG_SIDE)
    finite = [(np.asarray(box), line) for box, line in zip(boxes, lines, strict=True) if np.isfinite(box).all()]
    if any(_beyond(box).any() for box, _ in finite):
        image, finite = _with_border(image, finite)
    thin = any(line.bad for line in lines)
    draw(
        image,
        [Mark(box.tolist(), line.color, str(line.number), 2 if thin and not line.bad else 3) for box, line in finite],
    )
    for box, line in finite:
        if line.bad:
            _point_at(image, box, line.color)
    return data_url(image, quality=_QUALITY)


_Boxes = list[tuple[npt.NDArray[np.float64], Region]]


def _with_border(image: Image.Image, boxes: _Boxes) -> tuple[Image.Image, _Boxes]:
    """The image on a larger grey one, and its boxes in shares of that."""
    framed = ImageOps.expand(image, border=_BORDER, fill=_BORDER_COLOR)
    inner, outer = np.tile(image.size, 2), np.tile(framed.size, 2)
    return framed, [((box * inner + _BORDER) / outer, line) for box, line in boxes]


def _point_at(image: Image.Image, box: npt.NDArray[np.float64], color: str) -> None:
    """Arrows where a box goes on beyond the picture, and a ring around one that is hardly to be seen."""
    canvas = ImageDraw.Draw(image)
    size = np.asarray(image.size, dtype=np.float64)
    (left, top), (right, bottom) = (np.clip(corner, 0, 1) * (size - 1) for corner in _ordered(box))
    middle = ((left + right) / 2, (top + bottom) / 2)
    tips = ((left, middle[1]), (middle[0], top), (right, middle[1]), (middle[0], bottom))
    for tip, out, (x, y) in zip(tips, _beyond(box), ((1, 0), (0, 1), (-1, 0), (0, -1)), strict=True):
        if out:
            foot = np.asarray(tip) + 2 * _ARROW * np.asarray((x, y))
            across = _ARROW * np.asarray((y, x))
            canvas.polygon([tuple(tip), tuple(foot + across), tuple(foot - across)], fill=color)
    if min(right - left, bottom - top) < _FEW_PIXELS:
        canvas.circle(middle, _RING, outline=color, width=2)
