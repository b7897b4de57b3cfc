"""Protocol `coherence`: whether spatial tokens inside a labelled box are more alike than inside and outside.

Of each box: "inside" is the mean cosine of the tokens inside it to the mean of the others inside it (a token is not
compared with itself); "outside" that of the tokens outside it to the mean of all inside; "gap" is inside less outside;
"auc" is the probability that a token inside is nearer to the box than one outside (ties half), 0.5 by chance. It needs
no text: it tells of the encoder's tokens alone, so any ViT can be compared.

Tokens are brought to length 1 first, so that each counts alike. A token is inside when its patch's centre is. Patches
whose centre lies on the padding count nowhere. Boxes with fewer than 2 tokens inside or none outside are left out and
counted. Figures are means over the other boxes; without any they are 0 of 0 boxes.
Shapes: N patch tokens (rows from top to bottom, without [CLS]), D token width, M boxes of an image, B of the split.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloc.boxes import BoxesXYXY, Letterbox, as_boxes
from cloc.evaluation.ranking import unit
from cloc.evaluation.statistics import Draws, Estimate, Floats, Indices, mean_estimate

NAME = "coherence"
VERSION = 1
MIN_PATCHES = 2
_DIGITS = 9
COLUMNS = ("inside", "outside", "auc")


@dataclass(frozen=True, eq=False)
class CoherenceScores:
    """The protocol's figures: "inside", "outside", "gap" in [-1, 1] (gap in [-2, 2]), "auc" in [0, 1].

    Attributes:
        figures: means over boxes.
        left_out: boxes that hold too few tokens, or all.
    """

    figures: Mapping[str, Estimate]
    left_out: int


def measure(
    tokens_ND: Floats, boxes_M4: BoxesXYXY, *, grid: tuple[int, int], frame: Letterbox
) -> npt.NDArray[np.float64]:
    """Inside, outside and AUC of each box of one image, (M, 3); NaN in the rows of boxes that are left out.

    Args:
        tokens_ND: patch tokens of the padded network input.
        boxes_M4: xyxy in [0, 1] of the ORIGINAL image.
        grid: rows and columns of patches; N is their product.
        frame: how the image lies in the network input.

    Raises:
        ValueError: the grid does not have N patches.
    """
    rows, columns = grid
    if rows * columns != len(tokens_ND):
        raise ValueError(f"coherence: {len(tokens_ND)} tokens do not fill a grid of {rows} x {columns}")
    inside_MN = _inside(frame.to_padded(boxes_M4), grid)
    on_image_N = _inside(frame.to_padded([[0, 0, 1, 1]]), grid)[0]
    tokens_ND = unit(np.asarray(tokens_ND, dtype=np.float64)[on_image_N])
    inside_MN = inside_MN[:, on_image_N]
    values_M3 = np.full((len(inside_MN), len(COLUMNS)), np.nan)
    sums_MD = inside_MN.astype(np.float64) @ tokens_ND
    dots_MN = sums_MD @ tokens_ND.T
    lengths_N = (tokens_ND**2).sum(axis=1)  # 1, or 0 for a token of zeros
    for box, (inside_N, dots_N, sum_D) in enumerate(zip(inside_MN, dots_MN, sums_MD, strict=True)):
        if inside_N.sum() < MIN_PATCHES or inside_N.all():
            continue
        square = float(sum_D @ sum_D)
        own = dots_N[inside_N] - lengths_N[inside_N]
        rest = square - 2 * dots_N[inside_N] + lengths_N[inside_N]  # squared length of the sum of the others
        inside, outside = _cosines(own, rest), _cosines(dots_N[~inside_N], np.array(square))
        values_M3[box] = inside.mean(), outside.mean(), _auc(inside, outside)
    return values_M3


def score(values_B3: Floats, images_B: Indices, *, draws_SN: Draws) -> CoherenceScores:
    """The protocol's figures.

    Args:
        values_B3: of all boxes of the split (see `measure`).
        images_B: index of each box's image.
        draws_SN: resamples of the images (`statistics.draws`).
    """
    values_B3 = np.asarray(values_B3, dtype=np.float64).reshape(-1, len(COLUMNS))
    kept = ~np.isnan(values_B3).any(axis=1)
    inside, outside, auc = values_B3[kept].T
    images = np.asarray(images_B, dtype=np.int64)[kept]
    found = {"inside": inside, "outside": outside, "gap": inside - outside, "auc": auc}
    return CoherenceScores(
        figures={name: mean_estimate(values, images, draws_SN) for name, values in found.items()},
        left_out=int((~kept).sum()),
    )


def _inside(boxes_M4: BoxesXYXY, grid: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Which patches have their centre in which box, (M, N)."""
    rows, columns = grid
    x, y = (np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows
    left, top, right, bottom = as_boxes(boxes_M4).T[:, :, None]
    across, down = (x >= left) & (x < right), (y >= top) & (y < bottom)
    return (down[:, :, None] & across[:, None, :]).reshape(len(boxes_M4), rows * columns)


def _cosines(dots: Floats, squares: Floats) -> Floats:
    """Dot products with vectors of these squared lengths -> cosines; 0 for a vector that vanishes."""
    lengths = np.sqrt(np.maximum(squares, 0))
    cosines: Floats = np.where(lengths > 1e-9, dots / np.maximum(lengths, 1e-9), 0.0)
    return cosines


def _auc(inside: Floats, outside: Floats) -> float:
    """Probability that one of the first is above one of the second, ties half; what rounding may part is a tie."""
    inside, order = inside.round(_DIGITS), np.sort(outside.round(_DIGITS))
    below, upto = np.searchsorted(order, inside, side="left"), np.searchsorted(order, inside, side="right")
    return float((below + upto).mean() / (2 * len(outside)))
