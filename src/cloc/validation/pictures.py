"""Images of the report: drawn with their numbered boxes, as data URLs, with their texts beside them."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from PIL import Image, UnidentifiedImageError

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


@dataclass(frozen=True)
class Region:
    """A region beside a picture. `number` is what its box is marked with; `bad` marks the offending row."""

    number: int
    color: str
    text: str
    score: str
    box: str
    bad: bool


@dataclass(frozen=True)
class Caption:
    """A caption beside a picture."""

    kind: str
    text: str
    bad: bool


@dataclass(frozen=True)
class Picture:
    """One picture of the report; `source` is a data URL, empty when the image cannot be shown. All text untrusted."""

    title: str
    key: str
    shard: str
    source: str
    size: str
    captions: tuple[Caption, ...]
    regions: tuple[Region, ...]
    more_regions: int


def make_picture(
    sample: Sample, frames: ShardFrames, *, title: str, max_pixels: int, bad: Mapping[str, Sequence[int]] | None = None
) -> Picture:
    """Draws a sample with its labels.

    Args:
        sample: the image.
        frames: its shard's tables.
        title: what the picture is shown for; may be empty.
        max_pixels: larger images are not decoded.
        bad: offending rows of the shard's tables ("captions", "regions") by position; shown first and in red.
    """
    marked = {table: set(rows) for table, rows in (bad or {}).items()}
    captions = _own_rows(frames.captions, sample.key, marked.get("captions", set()))
    regions = _own_rows(frames.regions, sample.key, marked.get("regions", set()))
    alt_text = sample.meta.get("alt_text")
    listed = any(row["kind"] == "alt_text" for row in captions)
    alt = (Caption("alt_text", _cut(alt_text), bad=False),) if isinstance(alt_text, str) and not listed else ()
    shown = tuple(
        Region(
            number=number,
            color=_BAD if row["bad"] else COLORS[(number - 1) % len(COLORS)],
            text=_cut(row["text"]),
            score=f"{row['score']:.2f}",
            box=", ".join(f"{row[axis]:.3g}" for axis in _AXES),
            bad=row["bad"],
        )
        for number, row in enumerate(regions[:_MOST_BOXES], start=1)
    )
    size = image_size(sample.image)
    return Picture(
        title=title,
        key=sample.key,
        shard=frames.name,
        source=_draw(sample.image, regions[:_MOST_BOXES], shown, max_pixels=max_pixels),
        size=f"{size.width} x {size.height}" if size.width else "cannot be opened",
        captions=(*(Caption(row["kind"], _cut(row["text"]), row["bad"]) for row in captions[:_MOST_CAPTIONS]), *alt),
        regions=shown,
        more_regions=max(0, len(regions) - _MOST_BOXES),
    )


def _own_rows(frame: pd.DataFrame, key: str, bad: set[int]) -> list[dict[str, Any]]:
    own = frame[frame["key"] == key]
    rows = [{**row, "bad": position in bad} for position, row in zip(own.index, own.to_dict("records"), strict=True)]
    return sorted(rows, key=lambda row: not row["bad"])


def _cut(text: str) -> str:
    return f"{text[:_TEXT_CUT]}…" if len(text) > _TEXT_CUT else text


def _draw(body: bytes, rows: Sequence[Mapping[str, Any]], marks: Sequence[Region], *, max_pixels: int) -> str:
    size = image_size(body)
    if not size.width or not size.height or size.width * size.height > max_pixels:
        return ""
    try:
        image = Image.open(io.BytesIO(body)).convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return ""  # the page says that it cannot be shown
    image = fit(image, side=_LONG_SIDE)
    boxes = [[row[axis] for axis in _AXES] for row in rows]
    draw(image, [Mark(box, mark.color, str(mark.number)) for box, mark in zip(boxes, marks, strict=True)])
    return data_url(image, quality=_QUALITY)
