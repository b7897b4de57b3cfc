"""Random changes of training images that boxes follow: crops, flips, colours. An extension, off by default.

What is drawn depends on the generator alone, so that a sample of an epoch is changed alike wherever it is decoded.
Shapes: R regions of an image.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

from cloc.boxes import BoxesXYXY, area
from cloc.config.schema import AugmentationConfig
from cloc.data.transforms import PixelBox

Size = tuple[int, int]
_ATTEMPTS = 10  # crops drawn at most until one leaves a region
_SIDES = re.compile(r"\b(?:left|right)(?:s|most|wards?|side|hand(?:ed)?)?\b", re.IGNORECASE)
_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


@dataclass(frozen=True)
class View:
    """The part of an image that is shown, and the regions that are seen in it.

    Attributes:
        crop: pixels of the original; None for all of it.
        boxes_R4: boxes, xyxy in [0, 1] of the part, clipped to it.
        kept_R: which of the image's regions these are, ascending; None for all of them.
    """

    crop: PixelBox | None
    boxes_R4: BoxesXYXY
    kept_R: npt.NDArray[np.intp] | None


def random_view(boxes_R4: BoxesXYXY, *, size: Size, config: AugmentationConfig, rng: np.random.Generator) -> View:
    """A random crop that leaves a region if the image has any; the whole image where crops are off or none does.

    Args:
        boxes_R4: boxes, xyxy in [0, 1] of the original.
        size: width and height of the original, pixels.
        config: section `train.augmentation`.
        rng: decides.
    """
    whole = View(None, boxes_R4, None)
    if config.min_crop_area == 1:
        return whole
    for _ in range(_ATTEMPTS):
        crop = _random_crop(size, config=config, rng=rng)
        view = view_of(crop, boxes_R4, size=size, min_visible=config.min_visible)
        if len(view.boxes_R4) or not len(boxes_R4):
            return view
    return whole


def view_of(crop: PixelBox, boxes_R4: BoxesXYXY, *, size: Size, min_visible: float) -> View:
    """What is seen in a crop: boxes are clipped, and left out when less than `min_visible` of their area remains."""
    left, top, right, bottom = crop
    columns, rows = right - left, bottom - top
    moved = (boxes_R4 * [*size, *size] - [left, top, left, top]) / [columns, rows, columns, rows]
    clipped = np.clip(moved, 0.0, 1.0)
    seen, whole = area(clipped), area(moved)
    kept_R = np.flatnonzero((seen > 0) & (seen >= min_visible * whole))
    return View(crop, clipped[kept_R], kept_R)


def _random_crop(size: Size, *, config: AugmentationConfig, rng: np.random.Generator) -> PixelBox:
    """A crop of random area, place and shape; of whole pixels, so that its boxes are exact."""
    width, height = size
    share = rng.uniform(config.min_crop_area, 1.0)
    stretch = math.exp(rng.uniform(-1.0, 1.0) * math.log(config.max_stretch))
    # Where a side would exceed the image, the other one makes up for it.
    across = min(1.0, max(share, math.sqrt(share * stretch)))
    columns = max(1, round(width * across))
    rows = max(1, round(height * share / across))
    left, top = int(rng.integers(width - columns + 1)), int(rng.integers(height - rows + 1))
    return left, top, left + columns, top + rows


def names_a_side(texts: Iterable[str]) -> bool:
    """Whether a text says left or right, which a flipped image would make wrong."""
    return any(_SIDES.search(text) for text in texts)


def flipped(boxes_R4: BoxesXYXY) -> BoxesXYXY:
    """Boxes of an image, in [0, 1], after its left and right have changed places."""
    mirrored = boxes_R4.copy()
    mirrored[:, 0], mirrored[:, 2] = 1.0 - boxes_R4[:, 2], 1.0 - boxes_R4[:, 0]
    return mirrored


@dataclass(frozen=True)
class Retouch:
    """What is done to the pixels of an image after its resize.

    Attributes:
        flip: whether left and right change places.
        factors: of brightness, contrast and saturation; none leaves the colours.
    """

    flip: bool
    factors: tuple[float, ...] = ()

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image, changed; of the same size."""
        if self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for enhancer, factor in zip(_ENHANCERS, self.factors, strict=False):
            image = enhancer(image).enhance(factor)
        return image


def random_retouch(texts: Iterable[str], *, config: AugmentationConfig, rng: np.random.Generator) -> Retouch | None:
    """Draws; None when nothing is to be done. An image with a text that names a side is not flipped."""
    flip = bool(config.flip) and bool(rng.random() < config.flip) and not names_a_side(texts)
    factors: tuple[float, ...] = ()
    if config.color_jitter:
        factors = tuple(1.0 + config.color_jitter * rng.uniform(-1.0, 1.0, len(_ENHANCERS)))
    return Retouch(flip, factors) if flip or factors else None
