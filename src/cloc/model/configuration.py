"""The model's configuration: a CLIP or SigLIP configuration with a `cloc` part."""

from typing import Any, ClassVar

from transformers import CLIPConfig, SiglipConfig

from cloc.config.schema import ModelConfig

# What the region parts are where a checkpoint says nothing: METHOD's.
_PARTS = {
    "kind": "transformer",
    "layers": 1,
    "heads": 1,
    "pool": "all",
    "spatial_bias": "none",
    "points": False,
}


def region_parts(given: dict[str, Any] | None) -> dict[str, Any]:
    """What a family's configuration says of its region parts, completed."""
    return _PARTS | (given or {})


class CLOCConfig(CLIPConfig):
    """CLIP's configuration plus the region parts.

    `model_type` stays "clip": the saved folder is a CLIP checkpoint with additional weights, and loads as one.

    Attributes:
        cloc: the region parts: `kind` ("transformer" or "roi_align"), `layers`, `heads`, `pool`, `spatial_bias` as in
            `PrompterConfig`; `points`, whether point prompts were trained.
    """

    model_type = "clip"
    prefix_tokens: ClassVar[int] = 1
    cloc: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.cloc = region_parts(self.cloc)


class CLOCSiglipConfig(SiglipConfig):
    """SigLIP's configuration plus the region parts: SigLIP and the fixed-resolution checkpoints of SigLIP 2.

    Attributes:
        cloc: as `CLOCConfig.cloc`.
    """

    model_type = "siglip"
    prefix_tokens: ClassVar[int] = 0
    cloc: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.cloc = region_parts(self.cloc)


AnyCLOCConfig = CLOCConfig | CLOCSiglipConfig


def from_settings(config: ModelConfig, *, vocab_size: int, bos: int, eos: int, pad: int) -> AnyCLOCConfig:
    """The configuration of a model trained from scratch by these settings.

    Args:
        config: section `model`.
        vocab_size, bos, eos, pad: of the tokenizer; CLIP's text encoder pools at the EOS token.
    """
    vision, text = config.vision, config.text
    vision_sizes = {
        "hidden_size": vision.width,
        "intermediate_size": int(vision.width * vision.mlp_ratio),
        "num_hidden_layers": vision.layers,
        "num_attention_heads": vision.heads,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
    }
    text_sizes = {
        "hidden_size": text.width,
        "intermediate_size": int(text.width * text.mlp_ratio),
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "max_position_embeddings": text.context_length,
        "vocab_size": vocab_size,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
    }
    parts = config.prompter.model_dump()
    if config.family == "siglip":
        return CLOCSiglipConfig(
            vision_config=vision_sizes, text_config=text_sizes | {"projection_size": config.embed_dim}, cloc=parts
        )
    shared = {"hidden_act": "gelu", "projection_dim": config.embed_dim}
    return CLOCConfig(
        projection_dim=config.embed_dim,
        vision_config=vision_sizes | shared,
        text_config=text_sizes | shared,
        cloc=parts,
    )
