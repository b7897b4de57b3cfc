"""Masked attention crop: a region's embedding by limiting what the image's own pooling query sees to a box.

The last attention that makes the image embedding ([CLS] in the last layer of a CLIP; the attention pool of a SigLIP)
is asked again for every box, with the patches outside of it masked. Nothing is trained, the image is encoded once, and
a box of the whole input gives the image embedding itself. Keys, values and scores are computed once an image: a query
is the same for all boxes, so a box costs a softmax and a weighted sum.

Shapes: B images, M boxes an image, N tokens ([CLS] first where the family has one), H heads, D width, C = D / H.
Boxes are xyxy in [0, 1] of the padded network input.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def patches_inside(boxes_BM4: Tensor, *, grid: int) -> Tensor:
    """Which patches have their centre in a box, at least the one nearest to its centre: (B, M, grid * grid), bool."""
    centres = (torch.arange(grid, device=boxes_BM4.device, dtype=boxes_BM4.dtype) + 0.5) / grid
    x1, y1, x2, y2 = (side[..., None] for side in boxes_BM4.unbind(-1))
    across, down = (centres >= x1) & (centres <= x2), (centres >= y1) & (centres <= y2)
    inside = (down[..., :, None] & across[..., None, :]).flatten(-2)
    column, row = (((near + far) / 2 * grid).floor().clamp(0, grid - 1).long() for near, far in ((x1, x2), (y1, y2)))
    nearest = F.one_hot((row * grid + column)[..., 0], grid * grid).bool()
    return inside | (nearest & ~inside.any(dim=-1, keepdim=True))


def pool(scores_BHN: Tensor, values_BHNC: Tensor, seen_BMN: Tensor) -> Tensor:
    """Attention of one query an image and head, once a mask: (B, M, H * C). Each mask must leave a token."""
    masked_BMHN = scores_BHN[:, None].masked_fill(~seen_BMN[:, :, None], -torch.inf)
    weights_BHMN = masked_BMHN.softmax(dim=-1).transpose(1, 2)
    return (weights_BHMN @ values_BHNC).transpose(1, 2).flatten(-2)


def clip_layers(tower: Any, pixel_values: Tensor, *, interpolate: bool) -> tuple[Tensor, Tensor]:
    """A CLIP's vision tower layer by layer: what enters its last layer, and what leaves it, both (B, N, D).

    `transformers` would keep every layer's tokens to give one.
    """
    x_BND = tower.pre_layrnorm(tower.embeddings(pixel_values, interpolate_pos_encoding=interpolate))
    *layers, last = tower.encoder.layers
    for layer in layers:
        x_BND = layer(x_BND, None)
    return x_BND, last(x_BND, None)


def clip_pool(layer: Any, entering_BND: Tensor, boxes_BM4: Tensor, *, grid: int) -> Tensor:
    """What [CLS] leaves the last layer of a CLIP's vision tower as, when it sees itself and a box's patches alone.

    Args:
        layer: the last layer (`CLIPEncoderLayer`).
        entering_BND: what enters it.
        boxes_BM4: boxes.
        grid: patches a side.

    Returns:
        (B, M, D), before the tower's last normalisation.
    """
    attention, normed_BND = layer.self_attn, layer.layer_norm1(entering_BND)
    heads = attention.num_heads
    query_B1D, keys_BND, values_BND = (
        attention.q_proj(normed_BND[:, :1]),
        attention.k_proj(normed_BND),
        attention.v_proj(normed_BND),
    )
    scores_BHN = _scores(query_B1D, keys_BND, heads=heads)
    seen_BMN = F.pad(patches_inside(boxes_BM4, grid=grid), (1, 0), value=True)
    attended_BMD = attention.out_proj(pool(scores_BHN, _by_head(values_BND, heads), seen_BMN))
    x_BMD = entering_BND[:, :1] + attended_BMD
    leaving: Tensor = x_BMD + layer.mlp(layer.layer_norm2(x_BMD))
    return leaving


def siglip_pool(head: Any, tokens_BND: Tensor, boxes_BM4: Tensor, *, grid: int) -> Tensor:
    """What SigLIP's attention pool (`SiglipMultiheadAttentionPoolingHead`) makes of a box's patches alone: (B, M, D).

    Args:
        head: the pool.
        tokens_BND: the tokens that it reads.
        boxes_BM4: boxes.
        grid: patches a side.
    """
    attention = head.attention
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    query_11D = F.linear(head.probe, weights[0], biases[0])
    keys_BND, values_BND = (F.linear(tokens_BND, weights[part], biases[part]) for part in (1, 2))
    scores_BHN = _scores(query_11D.expand(len(tokens_BND), -1, -1), keys_BND, heads=attention.num_heads)
    values_BHNC = _by_head(values_BND, attention.num_heads)
    x_BMD = attention.out_proj(pool(scores_BHN, values_BHNC, patches_inside(boxes_BM4, grid=grid)))
    pooled: Tensor = x_BMD + head.mlp(head.layernorm(x_BMD))
    return pooled


def _by_head(x_BND: Tensor, heads: int) -> Tensor:
    return x_BND.unflatten(-1, (heads, -1)).transpose(1, 2)


def _scores(query_B1D: Tensor, keys_BND: Tensor, *, heads: int) -> Tensor:
    """Scaled products of each image's query with its keys: (B, H, N)."""
    query_BH1C, keys_BHNC = _by_head(query_B1D, heads), _by_head(keys_BND, heads)
    return (query_BH1C @ keys_BHNC.transpose(-1, -2))[:, :, 0] * query_BH1C.shape[-1] ** -0.5
