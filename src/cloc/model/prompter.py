"""The Prompter: spatial tokens and prompts -> features of regions (METHOD, Model).

One transformer layer over [prompt tokens, image tokens], a global average pool. The image is encoded once and prompted
many times, by boxes, points and texts: `prepare` computes what all prompts of an image share, the first layer's keys
and values of the image tokens. Where the pool reads prompt tokens alone, a prompt then costs next to nothing.

Shapes: B images, M prompts an image, P tokens a prompt, N = C + G * G spatial tokens (C = 1 with [CLS], which is first,
else 0), D ViT width, E embedding width, H heads, d = D / H. Boxes are xyxy and points (x, y), both in [0, 1] of the
padded network input.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization
from transformers.modeling_layers import GradientCheckpointingLayer

from cloc.model.roi_align import roi_grid

# Cells a side of the grid that a box's tokens are pooled to (spatial bias).
BINS = 3
# Where the biases on attention logits start.
_BOX_BIAS, _TEXT_BIAS = 4.0, 10.0

Pool = Literal["all", "image", "prompt"]
SpatialBias = Literal["none", "box"]


def sinusoidal(points_X2: Tensor, *, width: int) -> Tensor:
    """Sinusoidal encoding of points in [0, 1]^2: (..., 2) -> (..., width); width must be a multiple of 4."""
    if width % 4:
        raise ValueError(f"width: the sinusoidal encoding needs a multiple of 4, got {width}")
    steps = torch.arange(width // 4, device=points_X2.device, dtype=torch.float32)
    # From one period over 2 images to one over about 1/50 of an image, as far as a corner can be told apart.
    frequencies = math.pi * torch.pow(100.0, steps / max(1, width // 4 - 1))
    angles = points_X2.float()[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def grid_centres(grid: int, *, device: torch.device | None = None) -> Tensor:
    """Centres of the grid's cells in [0, 1]^2, row by row: (G * G, 2) as (x, y)."""
    axis = (torch.arange(grid, device=device, dtype=torch.float32) + 0.5) / grid
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def coverage(boxes_BM4: Tensor, *, grid: int) -> Tensor:
    """Share of each grid cell that a box covers: (B, M, 4) -> (B, M, G * G), in [0, 1]."""
    edges = torch.arange(grid + 1, device=boxes_BM4.device, dtype=torch.float32) / grid
    boxes = boxes_BM4.float()

    def overlap(low: Tensor, high: Tensor) -> Tensor:
        inside = torch.minimum(high[..., None], edges[1:]) - torch.maximum(low[..., None], edges[:-1])
        return inside.clamp_min(0) * grid

    x, y = overlap(boxes[..., 0], boxes[..., 2]), overlap(boxes[..., 1], boxes[..., 3])
    return (y[..., :, None] * x[..., None, :]).flatten(-2)


def init_linear(layer: nn.Linear) -> None:
    """Weights of deviation 1 / sqrt(fan-in), biases 0; weights that came from a checkpoint are left alone."""
    initialization.normal_(layer.weight, std=layer.in_features**-0.5)
    if layer.bias is not None:
        initialization.zeros_(layer.bias)


@dataclass(frozen=True)
class ImageMemory:
    """What the prompts of a batch of images share.

    Attributes:
        tokens_BND: the image tokens (with positions where there is a spatial bias).
        normed_B1ND, keys_B1HNd, values_B1HNd: of the first layer.
        patches_BGD: the patch tokens as the encoder gave them.
    """

    tokens_BND: Tensor
    normed_B1ND: Tensor
    keys_B1HNd: Tensor
    values_B1HNd: Tensor
    patches_BGD: Tensor

    @property
    def grid(self) -> int:
        """Patches a side: the model's own, but for inputs of another size."""
        return round(self.patches_BGD.shape[1] ** 0.5)


class PrompterLayer(GradientCheckpointingLayer):
    """A pre-norm transformer layer over prompt tokens and image tokens, kept apart so that image keys are shared.

    Where the pool takes image tokens, each prompt has its own after the layer: gradient checkpointing then saves more
    here than in a layer of the tower.
    """

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads: width {width} must be divisible by heads, got {heads}")
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def attend_to(self, tokens_BKND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normed tokens (B, K, N, D), their keys and their values (B, K, H, N, d)."""
        normed = self.attention_norm(tokens_BKND)
        keys, values = self._split(self.key_value(normed)).chunk(2, dim=-1)
        return normed, keys, values

    def forward(
        self,
        prompt_BMPD: Tensor,
        image_BKND: Tensor,
        bias_BMN: Tensor | None,
        *,
        image_output: bool,
        attended: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """New prompt tokens (B, M, P, D) and, when asked for, new image tokens (B, M, N, D).

        Args:
            prompt_BMPD: prompt tokens.
            image_BKND: image tokens; K = 1 where all prompts of the image share them, else K = M.
            bias_BMN: added to the attention logits of prompt tokens on image tokens.
            image_output: whether image tokens are updated as well.
            attended: `attend_to(image_BKND)` where it is known already.
        """
        normed, k_p, v_p = self.attend_to(prompt_BMPD)
        image_normed, k_i, v_i = self.attend_to(image_BKND) if attended is None else attended
        prompt = self._finish(prompt_BMPD, self._attend(self._split(self.query(normed)), k_p, v_p, k_i, v_i, bias_BMN))
        if not image_output:
            return prompt, None
        queries = self._split(self.query(image_normed)).expand(-1, prompt.shape[1], -1, -1, -1)
        return prompt, self._finish(image_BKND, self._attend(queries, k_p, v_p, k_i, v_i, None))

    def _split(self, x_BMPD: Tensor) -> Tensor:
        """(B, M, P, D) -> (B, M, H, P, d); for keys and values together d counts both."""
        return x_BMPD.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def _attend(self, q: Tensor, k_p: Tensor, v_p: Tensor, k_i: Tensor, v_i: Tensor, bias_BMN: Tensor | None) -> Tensor:
        q = q / math.sqrt(q.shape[-1])
        on_image = _per_image(q, k_i.transpose(-1, -2))
        if bias_BMN is not None:
            on_image = on_image + bias_BMN[:, :, None, None, :].to(on_image.dtype)
        logits = torch.cat([q @ k_p.transpose(-1, -2), on_image], dim=-1)
        weights = logits.float().softmax(dim=-1).to(v_p.dtype)
        on_prompt, on_image = weights.split([k_p.shape[-2], k_i.shape[-2]], dim=-1)
        return (on_prompt @ v_p + _per_image(on_image, v_i)).transpose(-3, -2).flatten(-2)

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.output(attended)
        return x + self.mlp(self.mlp_norm(x))


def _per_image(rows_BMHPX: Tensor, shared_BKHXY: Tensor) -> Tensor:
    """Rows of M prompts times K matrices; with K = 1 the prompts are folded into the rows, not the matrix repeated."""
    if shared_BKHXY.shape[1] != 1:
        return rows_BMHPX @ shared_BKHXY
    batch, prompts, heads, tokens, _ = rows_BMHPX.shape
    folded = rows_BMHPX.transpose(1, 2).reshape(batch, heads, prompts * tokens, -1)
    return (folded @ shared_BKHXY[:, 0]).unflatten(2, (prompts, tokens)).transpose(1, 2)


class Prompter(nn.Module):
    """Prompt encoder, transformer layers and pool; the projections to the embedding space belong to the model.

    Args:
        width: D, width of the ViT.
        embed_dim: E, width of the CLIP embedding (text prompts).
        grid: G, patches a side.
        prefix: tokens before the patches: 1 with [CLS], else 0.
        layers, heads: of the transformer (paper: 1 and 1).
        pool: which outputs the average pool takes.
        spatial_bias: "none" (paper) or "box" (extension): attention logits raised on the tokens inside the box, the
            box's tokens added to its prompt as a 3 x 3 grid (what lies where in the box: a mean alone learns shapes
            many times slower) and their mean to its embedding, positions added to the image tokens, and text prompts
            biased by the similarity of token and text. A point counts as a box of 3 x 3 patches around it.
    """

    def __init__(
        self,
        *,
        width: int,
        embed_dim: int,
        grid: int,
        prefix: int = 1,
        layers: int = 1,
        heads: int = 1,
        pool: Pool = "all",
        spatial_bias: SpatialBias = "none",
    ) -> None:
        super().__init__()
        self.width, self.grid, self.prefix, self.pool, self.spatial_bias = width, grid, prefix, pool, spatial_bias
        self.corner_type = nn.Parameter(torch.zeros(2, width))
        self.point_type = nn.Parameter(torch.zeros(1, width))
        self.text_prompt = nn.Linear(embed_dim, width)
        self.layers = nn.ModuleList(PrompterLayer(width, heads=heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        # The bias is on what prompt tokens attend to, which a single layer that pools image tokens alone never reads.
        self.biases_attention = spatial_bias == "box" and (pool != "image" or layers > 1)
        if spatial_bias == "box":
            self.inside = nn.Linear(BINS * BINS * width, width)
            self.token_projection = nn.Linear(width, embed_dim, bias=False)
        if self.biases_attention:
            self.box_bias = nn.Parameter(torch.tensor(_BOX_BIAS))
            self.text_bias = nn.Parameter(torch.tensor(_TEXT_BIAS))

    def reset_parameters(self) -> None:
        """Weights before training."""
        initialization.normal_(self.corner_type, std=0.02)
        initialization.normal_(self.point_type, std=0.02)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                init_linear(part)
        if self.biases_attention:
            initialization.constant_(self.box_bias, _BOX_BIAS)
            initialization.constant_(self.text_bias, _TEXT_BIAS)

    def prepare(self, tokens_BND: Tensor) -> ImageMemory:
        """What all prompts of the images share; every other call takes it."""
        patches = tokens_BND[:, self.prefix :]
        if self.spatial_bias == "box":
            grid = round(patches.shape[1] ** 0.5)
            where = sinusoidal(grid_centres(grid, device=tokens_BND.device), width=self.width)
            tokens_BND = tokens_BND + F.pad(where, (0, 0, self.prefix, 0)).to(tokens_BND.dtype)
        first = self.layers[0]
        assert isinstance(first, PrompterLayer)
        return ImageMemory(tokens_BND, *first.attend_to(tokens_BND[:, None]), patches)

    def boxes(self, memory: ImageMemory, boxes_BM4: Tensor) -> Tensor:
        """Features of boxes: (B, M, 4) -> (B, M, D)."""
        return self._places(memory, boxes_BM4.unflatten(-1, (2, 2)), self.corner_type, boxes_BM4)

    def points(self, memory: ImageMemory, points_BM2: Tensor) -> Tensor:
        """Features of points: (B, M, 2) -> (B, M, D)."""
        return self._places(memory, points_BM2[:, :, None], self.point_type, self.around(points_BM2))

    def around(self, points_BM2: Tensor) -> Tensor:
        """Boxes of BINS x BINS patches around points: (B, M, 2) -> (B, M, 4). They are patches of the model's own grid,
        so that a point means the same share of an image at every size of the input."""
        half = BINS / 2 / self.grid
        return torch.cat([points_BM2 - half, points_BM2 + half], dim=-1).clamp(0, 1)

    def texts(self, memory: ImageMemory, texts_BME: Tensor) -> Tensor:
        """Features of text prompts (normalised text embeddings): (B, M, E) -> (B, M, D)."""
        prompt = self.text_prompt(texts_BME)[:, :, None]
        if not self.biases_attention:
            return self._run(memory, prompt, None)
        return self._run(memory, prompt, self._bias(self.text_bias * self.similarity(memory, texts_BME)))

    def pooled(self, memory: ImageMemory, boxes_BM4: Tensor) -> Tensor:
        """Mean of the patch tokens inside each box, in the embedding space: (B, M, 4) -> (B, M, E). Only with the
        spatial bias.

        Added to the region embedding it teaches single tokens to lie near the texts of what they show, which is what
        draws a text prompt to its object.
        """
        covered = coverage(boxes_BM4, grid=memory.grid)
        weights = covered / covered.sum(dim=-1, keepdim=True).clamp_min(1e-6)
        patches = memory.patches_BGD
        return self.token_projection(weights.to(patches.dtype) @ patches)

    def point_parameters(self) -> list[nn.Parameter]:
        """Parameters that only point prompts use."""
        return [self.point_type]

    def text_parameters(self) -> list[nn.Parameter]:
        """Parameters that only text prompts use."""
        only = list(self.text_prompt.parameters())
        if self.biases_attention:
            only.append(self.text_bias)
        return only

    def similarity(self, memory: ImageMemory, texts_BME: Tensor) -> Tensor:
        """Cosine of every patch token and every text, in [-1, 1]: (B, M, G * G). Only with the spatial bias."""
        seen = F.normalize(self.token_projection(memory.patches_BGD).float(), dim=-1)
        return F.normalize(texts_BME.float(), dim=-1) @ seen.transpose(-1, -2)

    def _places(self, memory: ImageMemory, points_BMP2: Tensor, kind_PD: Tensor, boxes_BM4: Tensor) -> Tensor:
        """Features of prompts that are places: a token a point, and the boxes that a spatial bias attends to."""
        patches = memory.patches_BGD
        prompt = sinusoidal(points_BMP2, width=self.width).to(patches.dtype) + kind_PD
        if self.spatial_bias == "none":
            return self._run(memory, prompt, None)
        cells = roi_grid(patches, boxes_BM4, bins=BINS, samples=2)
        prompt = prompt + self.inside(cells.flatten(2))[:, :, None]
        if not self.biases_attention:
            return self._run(memory, prompt, None)
        covered = coverage(boxes_BM4, grid=memory.grid).to(patches.dtype)
        return self._run(memory, prompt, self._bias(self.box_bias * covered))

    def _bias(self, patches_BMG: Tensor) -> Tensor:
        return F.pad(patches_BMG, (self.prefix, 0))

    def _run(self, memory: ImageMemory, prompt_BMPD: Tensor, bias_BMN: Tensor | None) -> Tensor:
        prompt, image = prompt_BMPD.to(memory.tokens_BND.dtype), memory.tokens_BND[:, None]
        attended: tuple[Tensor, Tensor, Tensor] | None = (memory.normed_B1ND, memory.keys_B1HNd, memory.values_B1HNd)
        for index, layer in enumerate(self.layers):
            last = index == len(self.layers) - 1
            prompt, updated = layer(
                prompt, image, bias_BMN, image_output=not last or self.pool != "prompt", attended=attended
            )
            image, attended = image if updated is None else updated, None
        parts = {"all": [prompt, image], "image": [image], "prompt": [prompt]}[self.pool]
        return self.norm(torch.cat(parts, dim=2).mean(dim=2)) if len(parts) > 1 else self.norm(parts[0].mean(dim=2))
