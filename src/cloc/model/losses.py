"""The losses of CLOC as pure functions of tensors (METHOD, Losses).

Shapes: K rows of this rank (images, or B * M places of regions), E embedding width. Embeddings are unit vectors; losses
are float32 whatever the inputs, float64 for float64 inputs.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from cloc.model.tiled import Kind, Settings, TiledContrastive

TILE = 1024
"""Rows and columns of a tile of logits (`benchmarks/loss.py`)."""


@dataclass(frozen=True)
class Contrastive:
    """A contrastive loss over the global batch; the same on every rank.

    Attributes:
        loss: scalar with gradient; 0 when no pair is valid.
        valid_rows: number of valid pairs (a_k, b_k); int64.
        dropped_pairs: how many (i, j), i != j, of them the similar-text filter dropped; int64.
    """

    loss: Tensor
    valid_rows: Tensor
    dropped_pairs: Tensor

    @property
    def dropped_share(self) -> Tensor:
        """Share of the negatives that the filter dropped."""
        return self.dropped_pairs / (self.valid_rows * (self.valid_rows - 1)).clamp_min(1)


def contrastive(
    a_KE: Tensor,
    b_KE: Tensor,
    *,
    scale: Tensor,
    bias: Tensor | None = None,
    kind: str = "infonce",
    valid_K: Tensor | None = None,
    similar_text_threshold: float = 1.0,
    group: dist.ProcessGroup | None = None,
    tile: int = TILE,
) -> Contrastive:
    """The paper's L_CLIP (images and texts) and L_CLOC (regions and texts, filtered and masked), in tiles.

    With logits z_ij = scale * a_i . b_j + bias over the n valid pairs of all ranks:

    - `infonce`: mean of (log-sum-exp of row i + log-sum-exp of column i) / 2 - z_ii.
    - `sigmoid` (SigLIP): -1/n times the sum of log sigmoid(z_ii) and, at i != j, log sigmoid(-z_ij).

    Pair (i, j), i != j, is left out when the cosine of texts b_i and b_j exceeds the threshold; no gradient flows
    through this filter and the positive is never dropped.

    With a group every rank gives K rows of its own (equally many: absent ones masked) and returns the loss of the
    global batch. Its gradients, those of scale and bias too, are W times this rank's part of the whole, so that DDP's
    mean over the W ranks is the gradient of one process with all rows. Every rank must call this, and backward.

    Args:
        a_KE, b_KE: unit vectors of any floating type; b holds the texts.
        scale, bias: logit scale, and logit bias of `sigmoid`: scalars.
        kind: `infonce` or `sigmoid`.
        valid_K: False where a pair is absent: it is neither a positive nor a negative, whatever its vectors are.
        similar_text_threshold: 1 switches the filter off.
        group: the ranks that share the batch; None: this process alone, also where others exist.
        tile: rows and columns of a tile; memory grows with its square alone.

    Raises:
        ValueError: shapes that do not fit, an unknown kind, a bias with `infonce`, a tile below 1; ranks with
            different numbers of rows, or with and without a mask (on every rank).
    """
    _check(a_KE, b_KE, scale=scale, bias=bias, kind=kind, valid_K=valid_K, tile=tile)
    settings = Settings(kind=Kind(kind), threshold=similar_text_threshold, tile=tile, group=group)
    loss, valid_rows, dropped_pairs = TiledContrastive.apply(a_KE, b_KE, scale, bias, valid_K, settings)
    return Contrastive(loss=loss, valid_rows=valid_rows, dropped_pairs=dropped_pairs)


def total(image: Tensor, region: Tensor, grounding: Tensor, *, weight: float, share: Tensor | float) -> Tensor:
    """L = L_CLIP + lambda (L_CLOC + L_grounding), with lambda = weight * share of the batch's images with regions."""
    return image + weight * share * (region + grounding)


def box_loss(predicted_K4: Tensor, labelled_K4: Tensor, *, kind: str) -> Tensor:
    """Grounding loss of each box, shape (K,): `l2` is the mean over the four coordinates (paper), `l1_giou` the sum of
    L1 (times 5) and 1 - GIoU (times 2) as in DETR.

    Raises:
        ValueError: another kind.
    """
    dtype = torch.float64 if predicted_K4.dtype == torch.float64 else torch.float32
    predicted, labelled = predicted_K4.to(dtype), labelled_K4.to(dtype)
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


def _check(
    a_KE: Tensor,
    b_KE: Tensor,
    *,
    scale: Tensor,
    bias: Tensor | None,
    kind: str,
    valid_K: Tensor | None,
    tile: int,
) -> None:
    if kind not in set(Kind):
        raise ValueError(f"kind: expected {' or '.join(Kind)}, got {kind!r}")
    if a_KE.dim() != 2 or a_KE.shape != b_KE.shape:
        raise ValueError(
            f"a_KE, b_KE: expected two equal shapes (K, E), got {tuple(a_KE.shape)} and {tuple(b_KE.shape)};"
            " give a row to each pair"
        )
    if a_KE.dtype != b_KE.dtype or not a_KE.is_floating_point():
        raise ValueError(f"a_KE, b_KE: expected one floating type, got {a_KE.dtype} and {b_KE.dtype}; cast one of them")
    if valid_K is not None and (valid_K.shape != a_KE.shape[:1] or valid_K.dtype != torch.bool):
        raise ValueError(
            f"valid_K: expected {len(a_KE)} booleans, one a row of a_KE, got {valid_K.dtype} of shape"
            f" {tuple(valid_K.shape)}"
        )
    if kind == Kind.INFONCE and bias is not None:
        raise ValueError("bias: infonce has none (a constant in all logits changes nothing); use kind='sigmoid'")
    for name, scalar in (("scale", scale), ("bias", bias)):
        if scalar is not None and scalar.numel() != 1:
            raise ValueError(f"{name}: expected a scalar, got shape {tuple(scalar.shape)}")
    if tile < 1:
        raise ValueError(f"tile: expected 1 or more rows, got {tile}")
