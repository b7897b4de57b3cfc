"""A vision transformer that starts as a convolution, so that it learns shapes from thousands of images.

A plain one must find out from data that a patch's neighbours matter; with few images and minutes it does not (kinds of
object stay near chance). Here positions are sinusoids in a few channels of their own, and each head of the first layers
starts by looking at one neighbour: a shift is a rotation of sinusoids, so that a query that is the rotated position
meets the key of the shifted one (Cordonnier et al., 2020; d'Ascoli et al., 2021). It is a start and no constraint: the
architecture and the checkpoint stay those of the class.

Shapes: W width, D channels of the positions' features, P patches.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Wavelengths in patches. Odd harmonics of 12: the features of two different places of a row of 12 have an inner product
# of at most 0, so that a head which looks at one neighbour looks at nothing else (with 3, 6 and 18 a quarter of its
# attention went elsewhere).
_WAVES = (12.0, 4.0, 2.4)
_AMPLITUDE = 4.0  # positions outweigh what is seen, so that normalisation leaves their size alone
_SHARPNESS = 0.3
_PLACE_GAIN, _CONTENT_GAIN = 0.3, 3.0  # of the layer norms: what is seen outweighs positions in what a layer reads
_CONTENT = 2.0
_RING = ((-1, -1), (0, -1), (1, -1), (-1, 0), (1, 0), (-1, 1), (0, 1), (1, 1))
HEADS = len(_RING)
_FEATURES = 4 * len(_WAVES)
LEAST_HEAD_WIDTH = _FEATURES


@torch.no_grad()
def start_as_convolution(tower: Any, *, distances: Sequence[int], seed: int) -> None:
    """Sets a CLIP-like vision tower's weights in place.

    Args:
        tower: `OwlViTVisionTransformer`, with 8 heads of at least `LEAST_HEAD_WIDTH` channels.
        distances: for each layer, how far its heads look, patches; 0 leaves a layer's attention as it is.
        seed: of the directions of the positions.

    Raises:
        ValueError: the heads are too few, too many or too narrow.
    """
    config = tower.config
    width, heads = config.hidden_size, config.num_attention_heads
    if heads != HEADS or width // heads < LEAST_HEAD_WIDTH:
        raise ValueError(
            f"{heads} heads of {width // heads} channels: a start as a convolution needs {HEADS} heads (one a "
            f"neighbour) of at least {LEAST_HEAD_WIDTH}; set teachers.vision.width and heads, or patience"
        )
    own = _FEATURES + 1  # one more, so that the features' sum stays 0 and normalisation does not move them
    basis_DW = torch.zeros(_FEATURES, width)
    basis_DW[:, :own] = _basis(seed)
    side = config.image_size // config.patch_size
    _place(tower.embeddings, basis_DW, side=side, own=own)
    _weigh(tower.post_layernorm, own=own, content=1.0)
    for layer, distance in zip(tower.encoder.layers, distances, strict=True):
        layer.self_attn.out_proj.weight[:own] = 0
        layer.mlp.fc2.weight[:own] = 0
        for norm in (layer.layer_norm1, layer.layer_norm2):
            _weigh(norm, own=own, content=_CONTENT_GAIN)
        if distance:
            _look(layer.self_attn, basis_DW, distance=distance)


def _basis(seed: int) -> Tensor:
    """Orthonormal directions (D, D + 1), each of sum 0."""
    mixed = torch.randn(_FEATURES + 1, _FEATURES + 1, generator=torch.Generator().manual_seed(seed))
    mixed[:, 0] = 1
    orthogonal, _ = torch.linalg.qr(mixed)
    return orthogonal[:, 1:].T


def _features(places_P: Tensor) -> Tensor:
    angles = places_P[:, None] * torch.tensor([2 * math.pi / wave for wave in _WAVES])
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _place(embeddings: Any, basis_DW: Tensor, *, side: int, own: int) -> None:
    rows, columns = torch.meshgrid(torch.arange(side).float(), torch.arange(side).float(), indexing="ij")
    features_PD = torch.cat([_features(columns.reshape(-1)), _features(rows.reshape(-1))], dim=1)
    embeddings.position_embedding.weight.zero_()
    embeddings.position_embedding.weight[1:] = _AMPLITUDE * features_PD @ basis_DW
    embeddings.patch_embedding.weight.mul_(_CONTENT)
    embeddings.patch_embedding.weight[:own] = 0
    embeddings.class_embedding[:own] = 0


def _weigh(norm: nn.LayerNorm, *, own: int, content: float) -> None:
    norm.weight[:own] = _PLACE_GAIN
    norm.weight[own:] = content


def _look(attention: Any, basis_DW: Tensor, *, distance: int) -> None:
    """Every head looks at its neighbour: query = rotated position, key = position."""
    head = attention.q_proj.weight.shape[0] // HEADS
    scale = math.sqrt(_SHARPNESS * math.sqrt(head)) / _PLACE_GAIN
    attention.q_proj.weight.zero_()
    attention.k_proj.weight.zero_()
    for number, (right, down) in enumerate(_RING):
        rows = slice(number * head, number * head + _FEATURES)
        turn_DD = torch.block_diag(_rotation(right * distance), _rotation(down * distance))
        attention.q_proj.weight[rows] = scale * turn_DD @ basis_DW
        attention.k_proj.weight[rows] = scale * basis_DW


def _rotation(shift: float) -> Tensor:
    """What turns the features of a place into those of the place `shift` patches on."""
    angles = torch.tensor([2 * math.pi * shift / wave for wave in _WAVES])
    cos, sin = torch.diag(angles.cos()), torch.diag(angles.sin())
    return torch.cat([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)])
