"""Making models: from scratch by the settings, from a public CLIP checkpoint, or from a saved folder."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from cloc.config.schema import ModelConfig
from cloc.errors import ConfigError
from cloc.model.configuration import CLOCConfig, from_settings
from cloc.model.modeling import CLOCModel
from cloc.model.processing import CLOCProcessor


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether a setting `precision` ("auto", "float32" or "bfloat16") means bfloat16 on a device.

    `auto` takes it where the hardware multiplies matrices faster in it: without AMX a processor does not.
    """
    native = device.type == "cuda" or bool(torch.cpu.get_capabilities().get("amx_bf16"))
    return native if precision == "auto" else precision == "bfloat16"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The autocast context of a setting `precision`; see `uses_bfloat16`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(precision, device))


def attention(precision: str, device: torch.device) -> str:
    """The attention kernel: on a processor `sdpa` is the faster one in float32, and several times the slower one in
    bfloat16."""
    return "eager" if device.type == "cpu" and uses_bfloat16(precision, device) else "sdpa"


def create(config: ModelConfig, *, tokenizer: str, attention: str = "sdpa") -> tuple[CLOCModel, CLOCProcessor]:
    """A model to train, and its processor.

    Args:
        config: section `model`; `init_from` names a CLIP checkpoint to start from.
        tokenizer: folder or hub id of the tokenizer.
        attention: kernel, as `transformers` names it; see `attention`.

    Raises:
        ConfigError: checkpoint or tokenizer cannot be loaded.
    """
    if config.init_from:
        model = _from_checkpoint(config, attention=attention)
    else:
        tok = _load(AutoTokenizer, tokenizer, what="tokenizer")
        settings = from_settings(
            config, vocab_size=len(tok), bos=tok.bos_token_id, eos=tok.eos_token_id, pad=tok.pad_token_id
        )
        settings._attn_implementation = attention
        model = CLOCModel(settings)
    return model, _processor(model, tokenizer)


def load(folder: str | Path, *, device: str = "cpu") -> tuple[CLOCModel, CLOCProcessor]:
    """A trained model in evaluation mode and its processor, from the folder that training wrote (or a hub id).

    Raises:
        ConfigError: it cannot be loaded.
    """
    model = _load(CLOCModel, str(folder), what="model")
    return model.eval().to(device), _processor(model, str(folder))


def _from_checkpoint(config: ModelConfig, *, attention: str) -> CLOCModel:
    settings = _load(CLOCConfig, config.init_from, what="CLIP checkpoint")
    settings.cloc = config.prompter.model_dump()
    return _load(CLOCModel, config.init_from, what="CLIP checkpoint", config=settings, attn_implementation=attention)


def _load(cls: Any, source: str, *, what: str, **options: Any) -> Any:
    try:
        return cls.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot load the {what} {source!r}: {str(error).splitlines()[0]}") from None


def _processor(model: CLOCModel, tokenizer: str) -> CLOCProcessor:
    return CLOCProcessor.from_pretrained(
        tokenizer,
        image_size=model.config.vision_config.image_size,
        context_length=model.config.text_config.max_position_embeddings,
    )
