"""Which patch answers for which box: Hungarian matching (DETR, section 3.1), one patch a box.

Boxes are in shares of the network's square input. Shapes: P patches (= proposed boxes), G boxes of an image.
"""

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from torch import Tensor

_CLASS, _L1, _GIOU = 2.0, 5.0, 2.0  # weights of the costs (DETR)
# Of the distance of a patch's middle from the box's. It decides, nearly alone: a patch that sees things from their
# middle learns what they are; one that sees any part of them, from anywhere, takes many times as long.
_MIDDLE = 50.0


def to_xyxy(boxes_N4: Tensor) -> Tensor:
    """Centre x, centre y, width, height -> xyxy, on the last axis."""
    centre, half = boxes_N4[..., :2], boxes_N4[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def to_cxcywh(boxes_N4: Tensor) -> Tensor:
    """xyxy -> centre x, centre y, width, height, on the last axis."""
    return torch.cat([(boxes_N4[..., :2] + boxes_N4[..., 2:]) / 2, boxes_N4[..., 2:] - boxes_N4[..., :2]], dim=-1)


def generalized_iou(one_N4: Tensor, other_N4: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al., 2019) of xyxy boxes, pair by pair with broadcasting: (..., 4) -> (...)."""
    overlap = torch.minimum(one_N4[..., 2:], other_N4[..., 2:]) - torch.maximum(one_N4[..., :2], other_N4[..., :2])
    hull = torch.maximum(one_N4[..., 2:], other_N4[..., 2:]) - torch.minimum(one_N4[..., :2], other_N4[..., :2])
    inner, outer = overlap.clamp_min(0).prod(-1), hull.clamp_min(0).prod(-1).clamp_min(1e-9)
    areas = [(box[..., 2:] - box[..., :2]).clamp_min(0).prod(-1) for box in (one_N4, other_N4)]
    union = (areas[0] + areas[1] - inner).clamp_min(1e-9)
    return inner / union - (outer - union) / outer


def match(boxes_P4: Tensor, scores_PG: Tensor, truth_G4: Tensor, middles_P2: Tensor) -> npt.NDArray[np.intp]:
    """The patch of each box: the assignment, one to one, whose cost over all boxes is least.

    Args:
        boxes_P4: proposed boxes, cxcywh.
        scores_PG: how sure each patch is of each box's texts, in [0, 1].
        middles_P2: middle of each patch.
        truth_G4: the boxes, xyxy; where there are more than patches, the assignment leaves some out.

    Returns:
        Patch of each box, (G,); -1 for a box that is left out.
    """
    with torch.no_grad():
        distance_PG = torch.cdist(boxes_P4, to_cxcywh(truth_G4), p=1)
        giou_PG = generalized_iou(to_xyxy(boxes_P4)[:, None], truth_G4[None])
        away_PG = torch.cdist(middles_P2, to_cxcywh(truth_G4)[:, :2])
        cost_PG = _MIDDLE * away_PG + _L1 * distance_PG - _GIOU * giou_PG - _CLASS * scores_PG
    patches, places = linear_sum_assignment(cost_PG.cpu().numpy())
    found = np.full(len(truth_G4), -1, dtype=np.intp)
    found[places] = patches
    return found


def middles(rows: int, columns: int) -> Tensor:
    """Middles (x, y) of the patches of a grid, row by row, (rows * columns, 2)."""
    y_HW, x_HW = torch.meshgrid(
        (torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij"
    )
    return torch.stack([x_HW, y_HW], dim=-1).flatten(0, 1)
