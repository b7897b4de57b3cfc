"""The weights of a CLIP in `transformers` and in open_clip: one list of pairs, read in both directions.

open_clip keeps CLIP's original names and layouts: query, key and value of an attention are stacked in one matrix, and
the two projections are stored as (width, embedding), the transpose of a linear layer's.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPConfig


@dataclass(frozen=True)
class Weight:
    """One weight in both worlds.

    Attributes:
        clip: its name in a `transformers` CLIPModel, or the names of what open_clip stacks along the first axis.
        open_clip: its name in open_clip.
        transposed: whether open_clip stores it transposed.
    """

    clip: tuple[str, ...]
    open_clip: str
    transposed: bool = False


# Weights that stand alone; then layers (with weight and bias) outside and inside of a transformer block.
_SINGLE = (
    Weight(("logit_scale",), "logit_scale"),
    Weight(("vision_model.embeddings.class_embedding",), "visual.class_embedding"),
    Weight(("vision_model.embeddings.patch_embedding.weight",), "visual.conv1.weight"),
    Weight(("vision_model.embeddings.position_embedding.weight",), "visual.positional_embedding"),
    Weight(("visual_projection.weight",), "visual.proj", transposed=True),
    Weight(("text_model.embeddings.token_embedding.weight",), "token_embedding.weight"),
    Weight(("text_model.embeddings.position_embedding.weight",), "positional_embedding"),
    Weight(("text_projection.weight",), "text_projection", transposed=True),
)
_LAYERS = {
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
    "text_model.final_layer_norm": "ln_final",
}
_BLOCK = {
    "layer_norm1": "ln_1",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def layout(config: CLIPConfig) -> Iterator[Weight]:
    """Every weight of a CLIPModel of this configuration."""
    yield from _SINGLE
    layers = dict(_LAYERS)
    for clip, open_clip, count in (
        ("vision_model", "visual.transformer", config.vision_config.num_hidden_layers),
        ("text_model", "transformer", config.text_config.num_hidden_layers),
    ):
        for index in range(count):
            ours, theirs = f"{clip}.encoder.layers.{index}", f"{open_clip}.resblocks.{index}"
            layers |= {f"{ours}.{name}": f"{theirs}.{_BLOCK[name]}" for name in _BLOCK}
            for kind in ("weight", "bias"):
                stacked = tuple(f"{ours}.self_attn.{part}_proj.{kind}" for part in "qkv")
                yield Weight(stacked, f"{theirs}.attn.in_proj_{kind}")
    for ours, theirs in layers.items():
        for kind in ("weight", "bias"):
            yield Weight((f"{ours}.{kind}",), f"{theirs}.{kind}")


def to_open_clip_weights(state: Mapping[str, Tensor], config: CLIPConfig) -> dict[str, Tensor]:
    """A CLIPModel's state (what else it holds is left out) by open_clip's names and in its layout, contiguous."""
    weights = {}
    for weight in layout(config):
        parts = [state[name] for name in weight.clip]
        value = torch.cat(parts) if len(parts) > 1 else parts[0]
        weights[weight.open_clip] = (value.T if weight.transposed else value).contiguous()
    return weights


def to_clip_weights(weights: Mapping[str, Tensor], config: CLIPConfig) -> dict[str, Tensor]:
    """open_clip's weights by the names and in the layout of a CLIPModel, in float32."""
    state: dict[str, Tensor] = {}
    for weight in layout(config):
        value = weights[weight.open_clip].float()
        value = value.T if weight.transposed else value
        parts = value.chunk(len(weight.clip)) if len(weight.clip) > 1 else (value,)
        state |= dict(zip(weight.clip, parts, strict=True))
    return state
