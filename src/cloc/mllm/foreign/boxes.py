"""Boxes as others write them, brought to the padded network input."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from cloc.boxes import BoxesXYXY, Letterbox
from cloc.mllm.boxtext import BINS, frame_problem
from cloc.mllm.foreign.items import Item, is_number

_EDGE = 0.012  # by which rounding may carry an edge out of the image; such an edge is moved back
_OTHERS_BINS = 1000


class BoxFrame(StrEnum):
    """What the numbers of a box in a text mean. Boxes that an item lists apart are pixels, or shares where all are."""

    AUTO = "auto"
    """Numbers up to 1 are shares of the image; others pixels of the size that the item gives; without
    one, whole numbers are bins."""
    IMAGE = "image"
    """Shares of the image."""
    SQUARE = "square"
    """Shares of the image padded to a square with itself in the middle, as in LLaVA-1.5's mixture."""
    BINS = "bins"
    """0 to 1000 along each side of the image, as Ferret writes."""
    PIXELS = "pixels"
    """Pixels of the size that the item gives; without one, of the image."""


@dataclass(frozen=True)
class Frames:
    """The frames of one item.

    Attributes:
        item: for messages.
        size: (width, height) of the image, pixels.
        given: the size that the item gives, pixels, or None.
        letterbox: map to the padded network input.
    """

    item: Item
    size: tuple[int, int]
    given: tuple[float, float] | None
    letterbox: Letterbox

    def choose(self, frame: BoxFrame, numbers: list[float]) -> BoxFrame:
        """The frame of an item's texts, by all the numbers in them. Raises DataError when they tell of none."""
        if frame is not BoxFrame.AUTO or not numbers or max(numbers) <= 1:
            return BoxFrame.IMAGE if frame is BoxFrame.AUTO else frame
        if self.given:
            return BoxFrame.PIXELS
        if any(number != round(number) for number in numbers):
            return BoxFrame.IMAGE
        if max(numbers) <= _OTHERS_BINS:
            return BoxFrame.BINS
        raise self.item.error(
            f"a box with the number {max(numbers):g} is in the wrong frame: in [0, 1] or in {_OTHERS_BINS} bins is "
            "wanted; boxes in pixels need the item's width and height"
        )

    def own_frame(self, box: list[float]) -> BoxFrame:
        """The frame of a box that the item lists apart."""
        return BoxFrame.IMAGE if max(box) <= 1 else BoxFrame.PIXELS

    def padded(self, box: list[float], frame: BoxFrame) -> BoxesXYXY:
        """Numbers x1, y1, x2, y2 -> box (4,) of the padded network input, at least one bin wide and high.

        Raises:
            DataError: they are no box in this frame.
        """
        share = self._share(np.array(box, dtype=np.float64), frame)
        inside = np.clip(share, 0.0, 1.0)
        share = np.where(np.abs(share - inside) <= _EDGE, inside, share)
        problem = frame_problem(share)
        if problem:
            read = "" if frame is BoxFrame.IMAGE else f" (from {_shown(box)}, read as {frame.value})"
            raise self.item.error(f"{problem}{read}")
        return _at_least_a_bin(self.letterbox.to_padded(share[None])[0])

    def _share(self, box: BoxesXYXY, frame: BoxFrame) -> BoxesXYXY:
        """The box in shares of the image."""
        width, height = self.size
        if frame is BoxFrame.SQUARE:
            side = max(width, height)
            before = np.array([side - width, side - height] * 2) / 2
            return (box * side - before) / np.array([width, height] * 2)
        if frame is BoxFrame.BINS:
            return box / _OTHERS_BINS
        if frame is BoxFrame.PIXELS:
            return box / np.array([*(self.given or self.size)] * 2)
        return box


def _shown(box: list[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in box)}]"


def _at_least_a_bin(box: BoxesXYXY) -> BoxesXYXY:
    low = np.minimum(box[:2], 1 - 1 / BINS)
    return np.concatenate([low, np.maximum(box[2:], low + 1 / BINS)])


def numbers_of(item: Item, value: Any) -> list[float]:
    """The four numbers of a box. Raises DataError when the value is none."""
    if not isinstance(value, list) or len(value) != 4 or not all(map(is_number, value)):
        raise item.error(f"expected a box of four numbers, got {str(value)[:80]}")
    return [float(number) for number in value]
