"""Region samplers: what stands for a region in the decoder's input, at REGION_TOKEN (METHOD, Evaluation, MLLM).

    prompter   CLOC's own region embedding: the encoder's frozen Prompter over the tokens that LLaVA reads (the paper's
               variant with the star); needs an encoder with trained region parts
    roi_align  the mean of the patch tokens under the box, weighted by what of each the box covers; any tower

Both end in a small MLP into the decoder's width, which is trained.
Shapes: B images, N spatial tokens, W their width, K regions of a batch, M of an image at most, E width of what is read,
D decoder width. Boxes are xyxy in [0, 1] of the padded network input.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cloc.config.schema import RegionSamplerKind
from cloc.errors import ConfigError
from cloc.model import factory
from cloc.model.configuration import CLOCConfig, CLOCSiglipConfig
from cloc.model.prompter import coverage

_TOWERS = ("vision_model", "text_model", "visual_projection", "text_projection")
_LEAST = 0.01  # side of a box
_CONFIGS: dict[str, type[CLOCConfig] | type[CLOCSiglipConfig]] = {"clip": CLOCConfig, "siglip": CLOCSiglipConfig}


class RoIReader(nn.Module):
    """Mean of the patch tokens under a box, weighted by overlap.

    Args:
        width: of the tokens.
        prefix: tokens before the patches: 1 with [CLS], else 0.
    """

    def __init__(self, width: int, *, prefix: int) -> None:
        super().__init__()
        self.width, self.prefix = width, prefix

    def forward(self, tokens_BND: Tensor, boxes_BM4: Tensor) -> Tensor:
        """(B, N, W), (B, M, 4) -> (B, M, W)."""
        patches = tokens_BND[:, self.prefix :].float()
        covered = coverage(boxes_BM4, grid=round(patches.shape[1] ** 0.5))
        return covered / covered.sum(dim=-1, keepdim=True).clamp_min(1e-6) @ patches

    def describe(self) -> dict[str, Any]:
        """What `from_description` makes it from again."""
        return {"kind": "roi_align", "width": self.width, "prefix": self.prefix}


class PrompterReader(nn.Module):
    """CLOC's region embeddings, by the region parts of an encoder; frozen.

    Args:
        parts: a CLOC model, of which all but the region parts is dropped.
    """

    def __init__(self, parts: factory.AnyCLOCModel) -> None:
        super().__init__()
        for name in _TOWERS:
            if hasattr(parts, name):
                delattr(parts, name)
        self.parts = parts.requires_grad_(False).eval()
        self.width = parts.embed_dim

    def forward(self, tokens_BND: Tensor, boxes_BM4: Tensor) -> Tensor:
        """(B, N, W), (B, M, 4) -> (B, M, E)."""
        embeds: Tensor = self.parts.embed_boxes(tokens_BND, boxes_BM4)
        return embeds

    def describe(self) -> dict[str, Any]:
        """What `from_description` makes it from again."""
        return {"kind": "prompter", "encoder": self.parts.config.to_dict()}


class RegionSampler(nn.Module):
    """A reader of regions and the MLP into the decoder's width.

    Args:
        reader: reads boxes on spatial tokens.
        width: D, of the decoder.

    Attributes:
        settled: whether the MLP stays as it is in training.
    """

    def __init__(self, reader: RoIReader | PrompterReader, *, width: int) -> None:
        super().__init__()
        self.reader, self.settled = reader, False
        self.mlp = nn.Sequential(
            nn.LayerNorm(reader.width), nn.Linear(reader.width, width), nn.GELU(), nn.Linear(width, width)
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))
                nn.init.zeros_(layer.bias)

    def forward(self, tokens_BND: Tensor, regions_K4: Tensor, rows_K: Tensor) -> Tensor:
        """Embeddings of regions.

        Args:
            tokens_BND: spatial tokens.
            regions_K4: boxes.
            rows_K: the image of each.

        Returns:
            (K, D), in the order of `regions_K4`.
        """
        embeds_KD: Tensor = self.mlp(self.read(tokens_BND, regions_K4, rows_K))
        return embeds_KD

    def read(self, tokens_BND: Tensor, regions_K4: Tensor, rows_K: Tensor) -> Tensor:
        """What the MLP gets of regions: (K, E). Arguments as of `forward`."""
        images, row_K = rows_K.unique(return_inverse=True)
        order_K = row_K.argsort(stable=True)
        counts = row_K.bincount()
        starts = counts.cumsum(0) - counts
        place_K = torch.empty_like(row_K)
        place_K[order_K] = torch.arange(len(row_K), device=row_K.device) - starts[row_K[order_K]]
        boxes_BM4 = regions_K4.new_tensor([0.0, 0.0, 1.0, 1.0]).repeat(len(images), int(counts.max()), 1)
        boxes_BM4[row_K, place_K] = _with_area(regions_K4)
        read_BME: Tensor = self.reader(tokens_BND[images], boxes_BM4)
        return read_BME[row_K, place_K]

    def describe(self) -> dict[str, Any]:
        """What `from_description` makes it from again, for JSON."""
        return self.reader.describe()


def _with_area(boxes_K4: Tensor) -> Tensor:
    """Boxes of at least `_LEAST` a side: as text, too, a box takes a bin."""
    low = boxes_K4[:, :2].clamp(max=1 - _LEAST)
    return torch.cat([low, torch.maximum(boxes_K4[:, 2:], low + _LEAST)], dim=1)


def make_sampler(kind: RegionSamplerKind, encoder: str | Path, *, tower: Any, width: int) -> RegionSampler | None:
    """A new sampler.

    Args:
        kind: setting `adapter.region_sampler`.
        encoder: model folder, whose Prompter `prompter` takes.
        tower: configuration of the vision tower.
        width: of the decoder.

    Returns:
        None for "none".

    Raises:
        ConfigError: the encoder has no trained region parts.
    """
    if kind == "none":
        return None
    if kind == "roi_align":
        return RegionSampler(RoIReader(tower.hidden_size, prefix=prefix_tokens(tower)), width=width)
    return RegionSampler(PrompterReader(_region_parts(encoder)), width=width)


def from_description(described: dict[str, Any], *, width: int) -> RegionSampler:
    """The sampler that `describe` told of; its weights are to be loaded."""
    if described["kind"] == "roi_align":
        return RegionSampler(RoIReader(described["width"], prefix=described["prefix"]), width=width)
    config = described["encoder"]
    parts = factory.from_architecture(_CONFIGS[config["model_type"]].from_dict(config))
    return RegionSampler(PrompterReader(parts), width=width)


def prefix_tokens(tower: Any) -> int:
    """Tokens before the patches in a vision tower's output: 1 with [CLS], else 0."""
    return 0 if tower.model_type == "siglip_vision_model" else 1


def _region_parts(encoder: str | Path) -> factory.AnyCLOCModel:
    advice = "name an encoder that CLOC trained, or set it to roi_align or none"
    try:
        loaded = factory.load_any(encoder)
    except ConfigError as error:
        raise ConfigError(
            f"adapter.region_sampler: prompter needs an encoder with trained region parts ({error}); {advice}"
        ) from None
    if not loaded.has_regions or objective_of(encoder) == "clip":
        raise ConfigError(f"adapter.region_sampler: prompter, but {encoder} has no trained region parts; {advice}")
    return loaded.model


def objective_of(encoder: str | Path) -> str:
    """What an encoder was trained for, "cloc" or "clip", as pre-training recorded it; "given" where there is no record,
    as of a public model. Raises ConfigError when the record is none of pre-training's."""
    path = Path(encoder) / "training.json"
    try:
        return str(json.loads(path.read_text())["objective"])
    except FileNotFoundError:
        return "given"
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: not a record of pre-training ({type(error).__name__}: {error})") from None
