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

# `sdpa` in bfloat16 is several times slower than matmul and softmax on a CPU at small sizes.
ATTENTION = {"cpu": "eager", "cuda": "sdpa"}


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The autocast context of a setting `precision` ("auto", "float32" or "bfloat16") on a device.

    `auto` is bfloat16 where the hardware multiplies matrices faster in it: without AMX a processor does not.
    """
    native = device.type == "cuda" or bool(torch.cpu.get_capabilities().get("amx_bf16"))
    enabled = native if precision == "auto" else precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def create(config: ModelConfig, *, tokenizer: str, device: str = "cpu") -> tuple[CLOCModel, CLOCProcessor]:
    """A model to train, and its processor.

    Args:
        config: section `model`; `init_from` names a CLIP checkpoint to start from.
        tokenizer: folder or hub id of the tokenizer.
        device: "cpu" or "cuda": chooses the attention kernel.

    Raises:
        ConfigError: checkpoint or tokenizer cannot be loaded.
    """
    if config.init_from:
        model = _from_checkpoint(config, device=device)
    else:
        tok = _load(AutoTokenizer, tokenizer, what="tokenizer")
        settings = from_settings(
            config, vocab_size=len(tok), bos=tok.bos_token_id, eos=tok.eos_token_id, pad=tok.pad_token_id
        )
        settings._attn_implementation = ATTENTION[device]
        model = CLOCModel(settings)
    return model, _processor(model, tokenizer)


def load(folder: str | Path, *, device: str = "cpu") -> tuple[CLOCModel, CLOCProcessor]:
    """A trained model in evaluation mode and its processor, from the folder that training wrote (or a hub id).

    Raises:
        ConfigError: it cannot be loaded.
    """
    model = _load(CLOCModel, str(folder), what="model", attn_implementation=ATTENTION[device])
    return model.eval().to(device), _processor(model, str(folder))


def _from_checkpoint(config: ModelConfig, *, device: str) -> CLOCModel:
    settings = _load(CLOCConfig, config.init_from, what="CLIP checkpoint")
    settings.cloc = config.prompter.model_dump()
    return _load(
        CLOCModel, config.init_from, what="CLIP checkpoint", config=settings, attn_implementation=ATTENTION[device]
    )


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
