"""Boxes of annotations against the pictures that they are said to be of: whether they fit, and how they are stored."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cloc.boxes import problem

# Annotators and roundings overshoot the border by about a pixel; more than that is a fault of the data.
_TOLERANCE_PX = 1.0


@dataclass(frozen=True)
class StoredBox:
    """A box as a table has it.

    Attributes:
        x1, y1, x2, y2: shares of the image, as float32.
        clipped: whether it overshot the image's border.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    clipped: bool

    @property
    def corners(self) -> dict[str, float]:
        """Its columns."""
        return {"x1": self.x1, "y1": self.y1, "x2": self.x2, "y2": self.y2}


def stored_box(xyxy: Sequence[float], frame: tuple[int, int]) -> StoredBox | str:
    """A box of a source as it is stored, or why it cannot be.

    Args:
        xyxy: shares of the image.
        frame: (width, height) of the image that it was drawn on, pixels.
    """
    values = np.asarray(xyxy, dtype=np.float64)
    if not np.isfinite(values).all():
        return "box is not finite"
    overshoot = float((np.maximum(-values, values - 1) * np.array([*frame, *frame])).max())
    if overshoot > _TOLERANCE_PX + 1e-6:
        return f"box outside its image by {overshoot:.1f} pixels"
    # Judged as it will be stored: in float32, a very thin box can lose its last extent.
    corners = np.clip(values, 0, 1).astype(np.float32)
    x1, y1, x2, y2 = corners.tolist()
    return problem(corners) or StoredBox(x1, y1, x2, y2, clipped=overshoot > 0)


def size_problem(size: tuple[int, int], annotated: tuple[int, int]) -> str | None:
    """Boxes scale with the picture, but drawn on another shape (say before a rotation) they would not fit it.

    Args:
        size: (width, height) of the picture as seen, pixels.
        annotated: of the picture that the boxes were drawn on.
    """
    scale = max(size) / max(annotated)
    off = max(abs(side - other * scale) for side, other in zip(size, annotated, strict=True))
    if off <= 1.5:
        return None
    return f"is {size[0]}x{size[1]} pixels, its annotations are for {annotated[0]}x{annotated[1]}"
