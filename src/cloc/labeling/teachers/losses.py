"""The detector's loss: focal classification over the batch's texts, their contrast, L1 and GIoU of the boxes.

Shapes: B images, P patches, Q texts of the batch, M matched patches (one a box).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cloc.labeling.teachers.matching import generalized_iou, to_cxcywh, to_xyxy

_ALPHA, _GAMMA = 0.25, 2  # of the focal loss (Lin et al., 2017)
_FAR = -1e4


@dataclass(frozen=True)
class DetectorLosses:
    """Scalars, means over the matched boxes."""

    focal: Tensor
    contrast: Tensor
    kinds: Tensor
    l1: Tensor
    giou: Tensor

    def total(self) -> Tensor:
        """The weighted sum; the weights of the boxes are DETR's."""
        return 2 * self.focal + self.contrast + 3 * self.kinds + 5 * self.l1 + 2 * self.giou


def focal_loss(logits_BPQ: Tensor, image_M: Tensor, patch_M: Tensor, names_MQ: Tensor) -> Tensor:
    """Sigmoid focal loss of all patches and texts, over the number of matched patches.

    Everything is a negative but where a matched patch's box is named (1) or may be (-1: left out), so that only those
    few entries are treated one by one.

    Args:
        logits_BPQ: of every patch for every text.
        image_M, patch_M: the matched patches.
        names_MQ: 1 where a text names the patch's box, 0 where not, -1 where nobody knows.
    """
    chance_BPQ = logits_BPQ.sigmoid()
    negative_BPQ = (1 - _ALPHA) * chance_BPQ.pow(_GAMMA) * F.softplus(logits_BPQ)
    logits_MQ, chance_MQ = logits_BPQ[image_M, patch_M], chance_BPQ[image_M, patch_M]
    positive_MQ = _ALPHA * (1 - chance_MQ).pow(_GAMMA) * F.softplus(-logits_MQ)
    named = (positive_MQ * (names_MQ > 0)).sum()
    wrongly = (negative_BPQ[image_M, patch_M] * (names_MQ != 0)).sum()
    return (negative_BPQ.sum() - wrongly + named) / max(1, len(image_M))


def contrast_loss(similarity_MQ: Tensor, names_MQ: Tensor, *, scale: float) -> Tensor:
    """InfoNCE of each matched patch and each text that names its box, against the texts that do not.

    A sigmoid alone learns first that something is there, and what it is much later.

    Args:
        similarity_MQ: cosines of patches and texts.
        names_MQ: as in `focal_loss`; every row has a 1.
        scale: of the cosines.
    """
    logits_MQ = scale * similarity_MQ
    others_M1 = torch.logsumexp(logits_MQ.masked_fill(names_MQ != 0, _FAR), dim=1, keepdim=True)
    each_MQ = torch.logaddexp(logits_MQ, others_M1) - logits_MQ
    named_MQ = (names_MQ > 0).float()
    return ((each_MQ * named_MQ).sum(dim=1) / named_MQ.sum(dim=1).clamp_min(1)).mean()


def box_losses(boxes_M4: Tensor, truth_M4: Tensor) -> tuple[Tensor, Tensor]:
    """(L1, 1 - GIoU), means over the boxes: proposed ones as cxcywh against true ones as xyxy."""
    l1 = (boxes_M4 - to_cxcywh(truth_M4)).abs().sum(dim=-1).mean()
    return l1, (1 - generalized_iou(to_xyxy(boxes_M4), truth_M4)).mean()
