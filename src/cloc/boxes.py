"""Boxes: the one convention of the code base, and its geometry, in numpy.

A box is `xyxy`: left, top, right, bottom, floats in [0, 1] of an image, origin in the top-left corner. Unless a
name says otherwise ("padded"), the image is the ORIGINAL one. Arrays of boxes have the shape (N, 4).
Pixels exist only inside a function that needs them.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

BoxesXYXY: TypeAlias = npt.NDArray[np.floating]


def as_boxes(boxes: npt.ArrayLike) -> BoxesXYXY:
    """Returns `boxes` as a float64 array of shape (N, 4); an empty sequence becomes (0, 4).

    Raises:
        ValueError: the shape is not (N, 4).
    """
    array = np.asarray(boxes, dtype=np.float64)
    if array.size == 0:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"boxes: expected the shape (N, 4), got {array.shape}; pass xyxy rows in [0, 1]")
    return array


def area(boxes: BoxesXYXY) -> npt.NDArray[np.floating]:
    """Areas of the boxes, shape (N,), as a share of the image; degenerate boxes have area 0."""
    sides: npt.NDArray[np.floating] = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None)
    return sides[:, 0] * sides[:, 1]


def iou(a: BoxesXYXY, b: BoxesXYXY) -> npt.NDArray[np.floating]:
    """Pairwise intersection over union, shape (len(a), len(b)); 0 where both boxes are empty."""
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = np.clip(bottom_right - top_left, 0, None).prod(axis=2)
    union = area(a)[:, None] + area(b)[None, :] - overlap
    ratio: npt.NDArray[np.floating] = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
    return ratio


def nms(boxes: BoxesXYXY, scores: npt.NDArray[np.floating], *, threshold: float) -> npt.NDArray[np.intp]:
    """Class-agnostic non-maximum suppression: indices kept, best score first (ties: the earlier box)."""
    order = np.argsort(-scores, kind="stable")
    if threshold >= 1:
        return order
    kept: list[int] = []
    while order.size:
        best, order = order[0], order[1:]
        kept.append(int(best))
        order = order[iou(boxes[best : best + 1], boxes[order])[0] <= threshold]
    return np.asarray(kept, dtype=np.intp)


def problem(box: npt.ArrayLike, *, min_side: float = 0.0) -> str | None:
    """Why one box cannot be used, or None: not finite, outside [0, 1], degenerate, or a side below `min_side`."""
    x1, y1, x2, y2 = (float(value) for value in np.asarray(box, dtype=np.float64))
    if not np.isfinite([x1, y1, x2, y2]).all():
        return "box is not finite"
    if min(x1, y1, x2, y2) < 0 or max(x1, y1, x2, y2) > 1:
        return "box outside its image"
    if x2 <= x1 or y2 <= y1:
        return "degenerate box"
    if min(x2 - x1, y2 - y1) < min_side:
        return "box too small"
    return None


@dataclass(frozen=True)
class Letterbox:
    """Long-side resize to `size`, then padding to the square (METHOD, Table A): image on top left, padding after.

    Maps boxes of the original image to the padded network input ("padded" boxes, in [0, 1] of the square) and back.

    Attributes:
        width, height: the original image, pixels.
        size: side of the square network input, pixels.
    """

    width: int
    height: int
    size: int

    def __post_init__(self) -> None:
        if min(self.width, self.height, self.size) < 1:
            raise ValueError(
                f"Letterbox: sides must be at least 1 pixel, got {self.width}x{self.height} -> {self.size}"
            )

    @property
    def resized(self) -> tuple[int, int]:
        """(width, height) of the resized image before padding, pixels, each at least 1."""
        scale = self.size / max(self.width, self.height)
        return max(1, round(self.width * scale)), max(1, round(self.height * scale))

    @property
    def _share(self) -> npt.NDArray[np.float64]:
        width, height = self.resized
        return np.array([width, height, width, height], dtype=np.float64) / self.size

    def to_padded(self, boxes: npt.ArrayLike) -> BoxesXYXY:
        """Boxes (N, 4) of the original image -> boxes (N, 4) of the padded square."""
        return as_boxes(boxes) * self._share

    def from_padded(self, boxes: npt.ArrayLike) -> BoxesXYXY:
        """Boxes (N, 4) of the padded square -> boxes (N, 4) of the original image, clipped to it."""
        return np.clip(as_boxes(boxes) / self._share, 0.0, 1.0)
