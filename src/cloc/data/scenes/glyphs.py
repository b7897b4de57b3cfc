"""Pictograms as masks: rasterised once from the icon font, kept at several sizes, drawn at any size and angle.

A raster has three channels of alpha, 0 to 255: the body (the silhouette), the marks on it (the pictogram itself),
and the soft shadow it casts.
"""

import json
import math
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from cloc.data.scenes.vocabulary import Kind
from cloc.errors import ClocError

BASE = 256  # longest side of a glyph as it is rasterised, pixels
MARGIN = 0.11  # room around the glyph for its shadow, as a share of its longest side
_LEVELS = (24, 32, 43, 57, 76, 101, 135, 180, BASE)
_GAP = 0.045  # gaps up to twice this share of the longest side are marks, not gaps, on an opaque kind


@dataclass(frozen=True)
class Stamp:
    """A glyph as it is drawn: alpha masks of shape (H, W), 0 to 255.

    Attributes:
        body: the silhouette.
        marks: the pictogram on it.
        shadow: the silhouette, blurred.
    """

    body: npt.NDArray[np.uint8]
    marks: npt.NDArray[np.uint8]
    shadow: npt.NDArray[np.uint8]


def _font_folder() -> Path:
    try:
        return Path(str(resources.files("fontawesomefree"))) / "static" / "fontawesomefree"
    except ModuleNotFoundError:
        raise ClocError("scenes: the package fontawesomefree is missing; pip install 'cloc[scenes]'") from None


@cache
def _code_points() -> dict[str, str]:
    """Character of every solid icon, by the icon's name, as the package's metadata has it."""
    icons = json.loads((_font_folder() / "metadata" / "icons.json").read_text(encoding="utf-8"))
    return {name: chr(int(icon["unicode"], 16)) for name, icon in icons.items() if "solid" in icon["styles"]}


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_font_folder() / "webfonts" / "fa-solid-900.ttf"), size)


def character(kind: Kind) -> str:
    """The character of a kind in the font. Raises ClocError when this version of the font has none."""
    try:
        return _code_points()[kind.glyph]
    except KeyError:
        raise ClocError(f"scenes: fontawesomefree has no solid icon {kind.glyph!r}; install version 6.6.0") from None


def _pictogram(kind: Kind) -> Image.Image:
    """Mode L, cropped to the glyph, its longest side BASE pixels, with MARGIN around."""
    text = character(kind)
    left, top, right, bottom = _font(BASE).getbbox(text)
    font = _font(round(BASE * BASE / max(right - left, bottom - top)))
    left, top, right, bottom = (round(value) for value in font.getbbox(text))
    pad = math.ceil(MARGIN * BASE)
    image = Image.new("L", (right - left + 2 * pad, bottom - top + 2 * pad), 0)
    ImageDraw.Draw(image).text((pad - left, pad - top), text, font=font, fill=255)
    return image


def _silhouette(marks: Image.Image) -> Image.Image:
    """The pictogram with narrow gaps closed and holes filled; worked out at a quarter of the size, for speed."""
    small = marks.resize((marks.width // 4, marks.height // 4), Image.Resampling.BOX)
    work = small.point(lambda value: 255 if value >= 128 else 0)
    reach = round(_GAP * BASE / 4)
    for step in (ImageFilter.MaxFilter(3), ImageFilter.MinFilter(3)):
        for _ in range(reach):
            work = work.filter(step)
    ImageDraw.floodfill(outside := work.copy(), (0, 0), 128)
    holes = outside.point(lambda value: 255 if value == 0 else 0).filter(ImageFilter.MaxFilter(3))
    closed = ImageChops.lighter(work, holes).resize(marks.size, Image.Resampling.BICUBIC)
    return ImageChops.lighter(closed, marks)


@cache
def _levels(kind: Kind) -> tuple[Image.Image, ...]:
    """The raster (mode RGB: body, marks, shadow) with the glyph's longest side at each of _LEVELS pixels."""
    marks = _pictogram(kind)
    body = marks if kind.see_through else _silhouette(marks)
    shadow = body.filter(ImageFilter.GaussianBlur(BASE * 0.04))
    full = Image.merge("RGB", (body, marks, shadow))
    levels = []
    for level in _LEVELS:
        share = level / BASE
        size = (max(1, round(full.width * share)), max(1, round(full.height * share)))
        levels.append(full if level == BASE else full.resize(size, Image.Resampling.BOX))
    return tuple(levels)


def stamp(kind: Kind, *, extent: float, angle: float) -> Stamp:
    """A kind's masks with the longest side of the unturned glyph at `extent` pixels, turned by `angle` degrees."""
    levels = _levels(kind)
    index = next((i for i, level in enumerate(_LEVELS) if level >= extent), len(_LEVELS) - 1)
    source = levels[index]
    scale = _LEVELS[index] / extent  # source pixels a drawn pixel
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    width = math.ceil((source.width * abs(cos) + source.height * abs(sin)) / scale)
    height = math.ceil((source.width * abs(sin) + source.height * abs(cos)) / scale)
    a, b, d, e = cos * scale, sin * scale, -sin * scale, cos * scale
    c = source.width / 2 - a * width / 2 - b * height / 2
    f = source.height / 2 - d * width / 2 - e * height / 2
    drawn = source.transform(
        (width, height), Image.Transform.AFFINE, (a, b, c, d, e, f), resample=Image.Resampling.BILINEAR
    )
    pixels = np.asarray(drawn)
    return Stamp(body=pixels[..., 0], marks=pixels[..., 1], shadow=pixels[..., 2])
