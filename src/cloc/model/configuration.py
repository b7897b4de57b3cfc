"""The model's configuration: a CLIP configuration with a `cloc` part."""

from typing import Any

from transformers import CLIPConfig

from cloc.config.schema import ModelConfig
from cloc.errors import ConfigError


class CLOCConfig(CLIPConfig):
    """CLIP's configuration plus the region parts.

    `model_type` stays "clip": the saved folder is a CLIP checkpoint with additional weights, and loads as one.

    Attributes:
        cloc: settings of the region parts: `kind` ("transformer" or "roi_align"), `layers`, `heads`, `pool`,
            `spatial_bias` as in `PrompterConfig`.
    """

    model_type = "clip"
    cloc: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.cloc = {"kind": "transformer", "layers": 1, "heads": 1, "pool": "all", "spatial_bias": "none"} | (
            self.cloc or {}
        )


def from_settings(config: ModelConfig, *, vocab_size: int, bos: int, eos: int, pad: int) -> CLOCConfig:
    """The configuration of a model trained from scratch by these settings.

    Args:
        config: section `model`.
        vocab_size, bos, eos, pad: of the tokenizer; CLIP's text encoder pools at the EOS token.
    """
    vision, text = config.vision, config.text
    if vision.width % 4:
        raise ConfigError(f"model.vision.width must be a multiple of 4 for the positional encoding, got {vision.width}")
    return CLOCConfig(
        projection_dim=config.embed_dim,
        vision_config={
            "hidden_size": vision.width,
            "hidden_act": "gelu",
            "intermediate_size": int(vision.width * vision.mlp_ratio),
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "projection_dim": config.embed_dim,
        },
        text_config={
            "hidden_size": text.width,
            "hidden_act": "gelu",
            "intermediate_size": int(text.width * text.mlp_ratio),
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.context_length,
            "vocab_size": vocab_size,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "pad_token_id": pad,
            "projection_dim": config.embed_dim,
        },
        cloc=config.prompter.model_dump(),
    )
