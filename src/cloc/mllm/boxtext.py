"""Boxes as text, in one fixed format: "[12 40 55 90]", the first and the last bin that the box covers, x1 y1 x2 y2.

The frame is the PADDED network input, a square cut into 100 bins a side: what the encoder sees is what the decoder
names, so that it need not know the original's shape. `boxes.Letterbox` maps to and from the original image. Several
boxes stand behind each other with a blank between them.
"""

import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from cloc.boxes import BoxesXYXY, as_boxes
from cloc.mllm.conversation import REGION_TOKEN

BINS = 100
_BOX = re.compile(r"\[(\d{1,2}) (\d{1,2}) (\d{1,2}) (\d{1,2})\]")


def box_to_text(box: npt.ArrayLike) -> str:
    """A padded box (4,) as text. Its edges move by half a bin at most; it covers at least one bin a side."""
    x1, y1, x2, y2 = (float(value) * BINS for value in np.asarray(box, dtype=np.float64))
    left, top = (min(max(round(value), 0), BINS - 1) for value in (x1, y1))
    right, bottom = min(max(round(x2) - 1, left), BINS - 1), min(max(round(y2) - 1, top), BINS - 1)
    return f"[{left} {top} {right} {bottom}]"


def boxes_to_text(boxes: Iterable[npt.ArrayLike]) -> str:
    """Padded boxes (N, 4) as text, in their order."""
    return " ".join(box_to_text(box) for box in boxes)


def text_to_box(text: str) -> BoxesXYXY | None:
    """The padded box (4,) that a text is; None when it is anything else than one box with its corners in order."""
    match = _BOX.fullmatch(text.strip())
    return _corners(match) if match else None


def texts_to_boxes(text: str) -> tuple[BoxesXYXY, bool]:
    """The boxes in a text.

    Returns:
        The padded boxes (N, 4) in order, those with their corners out of order left out; and whether the text is
        well-formed: boxes with blanks between them, at least one, and nothing else.
    """
    found = [_corners(match) for match in _BOX.finditer(text)]
    usable = [box for box in found if box is not None]
    rest = _BOX.sub("", text)
    return as_boxes(usable), bool(found) and len(usable) == len(found) and not rest.strip()


def write_region(box: npt.ArrayLike, *, tokens: bool) -> str:
    """A padded box (4,) as a question names it: as text, with `tokens` with the place of its embedding behind it."""
    return f"{box_to_text(box)} {REGION_TOKEN}" if tokens else box_to_text(box)


def frame_problem(box: npt.ArrayLike) -> str | None:
    """Why numbers (4,) are no box in [0, 1] of an image, in one line, or None.

    A box without width or height is one: it is written as the bin that it lies in.
    """
    x1, y1, x2, y2 = (float(value) for value in np.asarray(box, dtype=np.float64))
    shown = f"[{x1:g}, {y1:g}, {x2:g}, {y2:g}]"
    if not np.isfinite([x1, y1, x2, y2]).all():
        return f"the box {shown} is not finite"
    if max(x1, y1, x2, y2) > 2:
        return f"the box {shown} is in pixels or bins, x1, y1, x2, y2 in [0, 1] of the image are wanted"
    if min(x1, y1, x2, y2) < 0 or max(x1, y1, x2, y2) > 1:
        return f"the box {shown} leaves its image, x1, y1, x2, y2 in [0, 1] are wanted"
    if x2 < x1 or y2 < y1:
        return f"the box {shown} has its corners out of order, x1, y1, x2, y2 are wanted (not x, y, width, height)"
    return None


def _corners(match: re.Match[str]) -> BoxesXYXY | None:
    left, top, right, bottom = (int(value) for value in match.groups())
    if right < left or bottom < top:
        return None
    return np.array([left, top, right + 1, bottom + 1], dtype=np.float64) / BINS
