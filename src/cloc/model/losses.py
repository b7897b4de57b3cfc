"""The losses of CLOC as pure functions of tensors (METHOD, Losses).

Shapes: N images or K regions of the GLOBAL batch, E embedding width. Embeddings are unit vectors; logits and
log-sum-exp are float32 whatever the inputs.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive(a_KE: Tensor, b_KE: Tensor, *, scale: Tensor, valid_K: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE of pairs (a_k, b_k): the paper's L_CLIP.

    Args:
        a_KE, b_KE: unit vectors.
        scale: logit scale, a scalar.
        valid_K: False where a pair is absent: it is neither a positive nor a negative.

    Returns:
        The scalar loss; 0 (with gradient) when no pair is valid.
    """
    return _info_nce(scale.float() * (a_KE.float() @ b_KE.float().T), dropped_KK=None, valid_K=valid_K)


def region_contrastive(
    regions_KE: Tensor,
    texts_KE: Tensor,
    *,
    scale: Tensor,
    valid_K: Tensor,
    similar_text_threshold: float,
) -> Tensor:
    """Symmetric InfoNCE of regions and their texts with the similar-text filter: the paper's L_CLOC.

    Pair (i, j), i != j, is dropped from both denominators when the cosine of texts i and j exceeds the threshold; no
    gradient flows through the filter and the positive is never dropped.

    Args:
        regions_KE, texts_KE: unit vectors of the global set of sampled regions.
        scale: logit scale, a scalar.
        valid_K: False at places of images with fewer regions.
        similar_text_threshold: 1 switches the filter off.
    """
    texts = texts_KE.float()
    dropped = None
    if similar_text_threshold < 1:
        with torch.no_grad():
            dropped = (texts @ texts.T) > similar_text_threshold
            dropped.fill_diagonal_(False)
    return _info_nce(scale.float() * (regions_KE.float() @ texts.T), dropped_KK=dropped, valid_K=valid_K)


def duplicate_share(texts_KE: Tensor, *, valid_K: Tensor, threshold: float) -> Tensor:
    """Share of off-diagonal valid pairs that the similar-text filter drops."""
    texts = texts_KE.detach().float()[valid_K]
    pairs = len(texts) * (len(texts) - 1)
    similar = (texts @ texts.T > threshold).sum() - len(texts)
    return similar.clamp_min(0) / max(pairs, 1)


def _info_nce(logits_KK: Tensor, *, dropped_KK: Tensor | None, valid_K: Tensor | None) -> Tensor:
    positives = logits_KK.diagonal()
    if valid_K is not None:
        absent = ~valid_K
        dropped = absent[:, None] | absent[None, :] if dropped_KK is None else dropped_KK | absent[:, None] | absent
        # The positive of an absent pair stays, so that no row is empty; the row itself is left out of the mean.
        dropped_KK = dropped & ~torch.eye(len(logits_KK), dtype=torch.bool, device=logits_KK.device)
    if dropped_KK is not None:
        logits_KK = logits_KK.masked_fill(dropped_KK, float("-inf"))
    losses = (logits_KK.logsumexp(dim=1) + logits_KK.logsumexp(dim=0)) / 2 - positives
    if valid_K is None:
        return losses.mean()
    return torch.where(valid_K, losses, 0.0).sum() / valid_K.sum().clamp_min(1)


def box_loss(predicted_K4: Tensor, labelled_K4: Tensor, *, kind: str) -> Tensor:
    """Grounding loss of each box, shape (K,): `l2` is the mean over the four coordinates (paper), `l1_giou` the sum of
    L1 (times 5) and 1 - GIoU (times 2) as in DETR.

    Raises:
        ValueError: another kind.
    """
    predicted, labelled = predicted_K4.float(), labelled_K4.float()
    if kind == "l2":
        return F.mse_loss(predicted, labelled, reduction="none").mean(dim=-1)
    if kind == "l1_giou":
        return 5 * (predicted - labelled).abs().mean(dim=-1) + 2 * (1 - _giou(predicted, labelled))
    raise ValueError(f"grounding loss: expected l2 or l1_giou, got {kind!r}")


def _giou(a_K4: Tensor, b_K4: Tensor) -> Tensor:
    """Generalised IoU of pairs of boxes; a box with crossed corners counts as empty."""

    def area(top_left: Tensor, bottom_right: Tensor) -> Tensor:
        return (bottom_right - top_left).clamp_min(0).prod(dim=-1)

    overlap = area(torch.maximum(a_K4[:, :2], b_K4[:, :2]), torch.minimum(a_K4[:, 2:], b_K4[:, 2:]))
    union = area(a_K4[:, :2], a_K4[:, 2:]) + area(b_K4[:, :2], b_K4[:, 2:]) - overlap
    hull = area(torch.minimum(a_K4[:, :2], b_K4[:, :2]), torch.maximum(a_K4[:, 2:], b_K4[:, 2:]))
    return overlap / union.clamp_min(1e-9) - (hull - union) / hull.clamp_min(1e-9)
