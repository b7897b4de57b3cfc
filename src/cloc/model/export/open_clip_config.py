"""The configuration of a CLIP in open_clip's open_clip_config.json and in `transformers`, in both directions.

Keys and defaults are those of open_clip 3: `CLIPVisionCfg`, `CLIPTextCfg` and `PreprocessCfg`. Reading is strict: a key
that would change the outputs, and that a CLIPModel has nothing like, is an error.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

from transformers import CLIPConfig

from cloc.data.transforms import PADDING
from cloc.errors import ConfigError
from cloc.model.processing import CLOCProcessor

# transformers' activation -> open_clip's `quick_gelu` (of both towers) and `act_kwargs` (of each).
_ACTIVATIONS: Mapping[str, tuple[bool, dict[str, str]]] = {
    "gelu": (False, {}),
    "quick_gelu": (True, {}),
    "gelu_pytorch_tanh": (False, {"approximate": "tanh"}),
}
# transformers pools a text at its highest token id, not at the EOS, where the EOS id is this (the first CLIP's).
_POOLS_AT_HIGHEST = 2
_NORM_EPS = 1e-5
# What reading passes over: it changes no output of a trained model, or it only says which tokenizer to take.
_NO_EFFECT: Mapping[str, Collection[str]] = {
    "model_cfg": ("custom_text", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale"),
    "vision_cfg": ("patch_dropout", "output_tokens", "attn_pooler_queries", "attn_pooler_heads"),
    "text_cfg": ("output_tokens", "pad_id", "bos_id", "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode"),
}
# Keys written out with the value that they have by default.
_DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "model_cfg": {},
    "vision_cfg": {"pool_type": "tok", "pos_embed_type": "learnable", "block_type": "default"},
    "text_cfg": {"proj_type": "linear", "text_arch": "clip", "block_type": "default"},
}
_REQUIRED = object()


def open_clip_config(config: CLIPConfig, processor: CLOCProcessor, *, logit_bias: float = 0.0) -> dict[str, Any]:
    """What open_clip_config.json says of a model: `model_cfg` and `preprocess_cfg`.

    Args:
        config: of the model.
        processor: its processor.
        logit_bias: of a sigmoid loss; 0: there is none.

    Raises:
        ConfigError: open_clip cannot express the model.
    """
    vision, text = config.vision_config, config.text_config
    if vision.hidden_act != text.hidden_act or vision.hidden_act not in _ACTIVATIONS:
        raise ConfigError(
            f"open_clip: hidden_act {vision.hidden_act!r} (vision) and {text.hidden_act!r} (text) must be the same, "
            f"one of {', '.join(_ACTIVATIONS)}"
        )
    vision_cfg = {
        "image_size": vision.image_size,
        "layers": vision.num_hidden_layers,
        "width": vision.hidden_size,
        "head_width": vision.hidden_size // vision.num_attention_heads,
        "patch_size": vision.patch_size,
    }
    text_cfg = {
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "width": text.hidden_size,
        "heads": text.num_attention_heads,
        "layers": text.num_hidden_layers,
        # From `local-dir:` open_clip takes the folder's tokenizer whatever this says; on the hub it must be the
        # repository's id, and this value is none.
        "hf_tokenizer_name": "local-dir",
        "tokenizer_kwargs": {"clean": "lower"},
    }
    model_cfg: dict[str, Any] = {
        "embed_dim": config.projection_dim,
        "vision_cfg": vision_cfg | _unusual(vision),
        "text_cfg": text_cfg | _unusual(text) | _text_pool(text, processor.tokenizer),
    }
    if _ACTIVATIONS[vision.hidden_act][0]:
        model_cfg["quick_gelu"] = True
    if logit_bias:
        model_cfg["init_logit_bias"] = logit_bias
    return {"model_cfg": model_cfg, "preprocess_cfg": _preprocess_cfg(processor)}


def clip_config(model_cfg: Mapping[str, Any], *, source: str) -> CLIPConfig:
    """The configuration of a CLIPModel that computes what open_clip's model of this `model_cfg` does.

    Args:
        model_cfg: of open_clip_config.json.
        source: where it came from, for messages.

    Raises:
        ConfigError: a setting is missing, or is one that a CLIPModel has nothing like.
    """
    top = _Section("model_cfg", model_cfg, source=source)
    vision = _Section("vision_cfg", top.take("vision_cfg"), source=source)
    text = _Section("text_cfg", top.take("text_cfg"), source=source)
    embed_dim, quick_gelu = top.take("embed_dim"), bool(top.take("quick_gelu", False))
    vision_width, text_width = vision.take("width", 768), text.take("width", 512)
    config = CLIPConfig(
        projection_dim=embed_dim,
        vision_config={
            "image_size": vision.side("image_size", 224),
            "patch_size": vision.side("patch_size", 16),
            "num_attention_heads": vision_width // vision.take("head_width", 64),
            "projection_dim": embed_dim,
        }
        | _tower(vision, width=vision_width, quick_gelu=quick_gelu),
        text_config={
            "max_position_embeddings": text.take("context_length", 77),
            "vocab_size": text.take("vocab_size", 49408),
            "num_attention_heads": text.take("heads", 8),
            "projection_dim": embed_dim,
            # The model reads neither of these two.
            "bos_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": _eos(text),
        }
        | _tower(text, width=text_width, quick_gelu=quick_gelu),
    )
    for section in (top, vision, text):
        section.finish()
    return config


class _Section:
    """A part of the configuration of which every key must be taken, or be known to have no effect."""

    def __init__(self, name: str, values: Any, *, source: str) -> None:
        if not isinstance(values, Mapping):
            raise ConfigError(f"{source}: {name} must be an object, got {values!r}")
        self.name, self.rest, self.source = name, dict(values), source

    def take(self, key: str, default: Any = _REQUIRED) -> Any:
        value = self.rest.pop(key, None)
        if value is None and default is _REQUIRED:
            raise ConfigError(f"{self.source}: {self.name}.{key} is missing")
        return default if value is None else value

    def side(self, key: str, default: int) -> int:
        """A side in pixels, which open_clip may write as two equal ones."""
        value = self.take(key, default)
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        if not isinstance(value, int):
            raise self.unlike(key, value)
        return value

    def unlike(self, key: str, value: Any) -> ConfigError:
        return ConfigError(
            f"{self.source}: {self.name}.{key} is {value!r}, which a transformers CLIPModel has nothing like; "
            "plain ViT models of open_clip can be read (ViT-B-16, ViT-L-14, ViT-H-14, ...)"
        )

    def finish(self) -> None:
        for key, value in self.rest.items():
            # Settings of a timm or Hugging Face tower matter only with its name.
            no_effect = key in _NO_EFFECT[self.name] or (
                key.startswith(("timm_", "hf_")) and not key.endswith("_model_name")
            )
            if value and not no_effect and _DEFAULTS[self.name].get(key) != value:
                raise self.unlike(key, value)


def _tower(section: _Section, *, width: int, quick_gelu: bool) -> dict[str, Any]:
    layers, norm, act = section.take("layers", 12), section.take("norm_kwargs", {}), section.take("act_kwargs", {})
    if not isinstance(layers, int):  # a ResNet
        raise section.unlike("layers", layers)
    if set(norm) - {"eps"}:
        raise section.unlike("norm_kwargs", norm)
    activation = next((name for name, meant in _ACTIVATIONS.items() if meant == (quick_gelu, act)), None)
    if activation is None:
        raise section.unlike("act_kwargs", act)
    return {
        "hidden_size": width,
        "intermediate_size": int(width * section.take("mlp_ratio", 4.0)),
        "num_hidden_layers": layers,
        "hidden_act": activation,
        "layer_norm_eps": norm.get("eps", _NORM_EPS),
    }


def _unusual(tower: Any) -> dict[str, Any]:
    """What a tower of either kind must say where it is not open_clip's default."""
    said: dict[str, Any] = {}
    if tower.intermediate_size != 4 * tower.hidden_size:
        ratio = tower.intermediate_size / tower.hidden_size
        while int(tower.hidden_size * ratio) < tower.intermediate_size:  # open_clip rounds the product down
            ratio = math.nextafter(ratio, math.inf)
        said["mlp_ratio"] = ratio
    if tower.layer_norm_eps != _NORM_EPS:
        said["norm_kwargs"] = {"eps": tower.layer_norm_eps}
    if act := _ACTIVATIONS[tower.hidden_act][1]:
        said["act_kwargs"] = act
    return said


def _text_pool(text: Any, tokenizer: Any) -> dict[str, Any]:
    """Where a text is pooled: open_clip's default is the highest token id, which is the EOS of CLIP's vocabulary."""
    eos = text.eos_token_id
    if eos in (_POOLS_AT_HIGHEST, text.vocab_size - 1):
        return {}
    if tokenizer.eos_token_id != eos:
        raise ConfigError(
            f"open_clip: the model pools texts at the token {eos} (text_config.eos_token_id), but its tokenizer ends "
            f"them with {tokenizer.eos_token_id}; save the model with the tokenizer that it was trained with"
        )
    return {"pool_type": "eos", "eos_id": eos}


def _eos(text: _Section) -> int:
    pool, eos = text.take("pool_type", "argmax"), text.take("eos_id", None)
    if pool == "argmax":
        return _POOLS_AT_HIGHEST
    if pool != "eos":
        raise text.unlike("pool_type", pool)
    if not isinstance(eos, int) or eos == _POOLS_AT_HIGHEST:
        raise text.unlike("eos_id", eos)
    return eos


def _preprocess_cfg(processor: CLOCProcessor) -> dict[str, Any]:
    return {
        "size": processor.image_size,
        "mode": "RGB",
        "mean": list(processor.pixel_mean),
        "std": list(processor.pixel_std),
        "interpolation": "bicubic",
        "resize_mode": "longest",
        "fill_color": round(sum(PADDING) / len(PADDING)),  # open_clip takes one value for all channels
    }
