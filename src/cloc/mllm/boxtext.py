"""Boxes as text, in one fixed format: "[12 40 55 90]", the first and the last bin that the box covers, x1 y1 x2 y2.

The frame is the PADDED network input, a square cut into 100 bins a side: what the encoder sees is what the decoder
names, so that it need not know the original's shape. `boxes.Letterbox` maps to and from the original image.
"""

import re

import numpy as np
import numpy.typing as npt

from cloc.boxes import BoxesXYXY

BINS = 100
_BOX = re.compile(r"\[(\d{1,2}) (\d{1,2}) (\d{1,2}) (\d{1,2})\]")


def box_to_text(box: npt.ArrayLike) -> str:
    """A padded box (4,) as text. Its edges move by half a bin at most; it covers at least one bin a side."""
    x1, y1, x2, y2 = (float(value) * BINS for value in np.asarray(box, dtype=np.float64))
    left, top = (min(max(round(value), 0), BINS - 1) for value in (x1, y1))
    right, bottom = min(max(round(x2) - 1, left), BINS - 1), min(max(round(y2) - 1, top), BINS - 1)
    return f"[{left} {top} {right} {bottom}]"


def text_to_box(text: str) -> BoxesXYXY | None:
    """The padded box (4,) that a text is; None when it is anything else than one box with its corners in order."""
    match = _BOX.fullmatch(text.strip())
    if match is None:
        return None
    left, top, right, bottom = (int(value) for value in match.groups())
    if right < left or bottom < top:
        return None
    return np.array([left, top, right + 1, bottom + 1], dtype=np.float64) / BINS
