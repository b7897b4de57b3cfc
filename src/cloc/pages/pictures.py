"""Images of a page: made small, with boxes drawn on them, as data URLs."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

# Told apart on photographs and by colour-blind eyes (after Okabe and Ito), red left free for what is wrong.
COLORS = ("#0090d4", "#e69f00", "#00a878", "#cc79a7", "#8e6fd8", "#b8ad00", "#56b4e9", "#d55e00", "#7a8b99", "#3d9a50")

_DASH, _GAP = 10, 7  # pixels
_SHADOW = "#14171b"


@dataclass(frozen=True)
class Mark:
    """A box to draw.

    Attributes:
        box: xyxy in [0, 1]. Corners out of order or outside are drawn at the border; a box that is not finite is not
            drawn.
        color: as CSS has it.
        tag: stands at its corner; "" for none.
        width: of the line, pixels.
        dashed: whether the line is dashed, on a thin dark one.
    """

    box: Sequence[float]
    color: str
    tag: str = ""
    width: int = 3
    dashed: bool = False


def fit(image: Image.Image, *, side: int, enlarge: bool = True) -> Image.Image:
    """The image with its long side at `side` pixels.

    Args:
        image: any.
        side: pixels.
        enlarge: whether a smaller image is made larger.
    """
    long_side = max(image.size)
    if long_side == side or (long_side < side and not enlarge):
        return image
    scale = side / long_side
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def draw(image: Image.Image, marks: Sequence[Mark], *, tag_height: int = 19) -> None:
    """Draws boxes on an image, the first one on top.

    Args:
        image: is drawn on.
        marks: the boxes.
        tag_height: height of the tags, pixels.
    """
    canvas = ImageDraw.Draw(image)
    for mark in reversed(marks):
        corners = _corners(mark.box, image.size)
        if corners is None:
            continue
        if mark.dashed:
            _draw_dashed(canvas, corners, mark)
        else:
            canvas.rectangle(corners, outline=mark.color, width=mark.width)
        if mark.tag:
            _draw_tag(canvas, corners, mark, image.size, tag_height)


def data_url(image: Image.Image, *, quality: int = 85) -> str:
    """The image as a JPEG inside a page."""
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def _corners(box: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    values: npt.NDArray[np.float64] = np.asarray(box, dtype=np.float64)
    if not np.isfinite(values).all():
        return None
    (x1, y1, x2, y2), (width, height) = (float(value) for value in np.clip(values, 0, 1)), size
    left, right = sorted((x1 * (width - 1), x2 * (width - 1)))
    top, bottom = sorted((y1 * (height - 1), y2 * (height - 1)))
    return left, top, right, bottom


def _draw_tag(
    canvas: ImageDraw.ImageDraw,
    corners: tuple[float, float, float, float],
    mark: Mark,
    size: tuple[int, int],
    height: int,
) -> None:
    """Above the box's left corner where there is room, else inside."""
    left, top, _, _ = corners
    font, margin = _font(round(height * 0.8)), round(height * 0.2)
    width = canvas.textlength(mark.tag, font=font) + 2 * margin
    above = top - height
    x = min(left, size[0] - width)
    y = above if above >= 0 else min(top, size[1] - height)
    canvas.rectangle((x, y, x + width, y + height), fill=mark.color)
    canvas.text((x + margin, y + 1), mark.tag, fill="white", font=font)


def _draw_dashed(canvas: ImageDraw.ImageDraw, corners: tuple[float, float, float, float], mark: Mark) -> None:
    left, top, right, bottom = corners
    canvas.rectangle(corners, outline=_SHADOW, width=1)
    for x in np.arange(left, right, _DASH + _GAP):
        for y in (top, bottom):
            canvas.line((x, y, min(x + _DASH, right), y), fill=mark.color, width=mark.width)
    for y in np.arange(top, bottom, _DASH + _GAP):
        for x in (left, right):
            canvas.line((x, y, x, min(y + _DASH, bottom)), fill=mark.color, width=mark.width)


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size=size)
