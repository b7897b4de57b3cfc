"""Making models: from scratch by the settings, from a public CLIP or SigLIP checkpoint, or from a saved folder."""

import copy
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, PreTrainedConfig
from transformers.utils import logging

from cloc.config.schema import LossConfig, ModelConfig
from cloc.errors import ConfigError
from cloc.model.configuration import AnyCLOCConfig, from_settings
from cloc.model.modeling import CLOCModel, CLOCSiglipModel
from cloc.model.processing import CLOCProcessor

AnyCLOCModel = CLOCModel | CLOCSiglipModel


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


# The class of a checkpoint, by its model_type.
FAMILIES: Mapping[str, type[CLOCModel] | type[CLOCSiglipModel]] = {"clip": CLOCModel, "siglip": CLOCSiglipModel}
# Nothing is unpickled; and a checkpoint in half precision is trained, and answers, in float32 (autocast is a setting).
_WEIGHTS = {"use_safetensors": True, "dtype": torch.float32}
# What the region parts add to a family's checkpoint; anything else that is missing makes it unusable.
_REGION_PARTS = ("prompter.", "region_", "box_head.", "logit_bias")


def create(
    config: ModelConfig, loss: LossConfig, *, tokenizer: str, attention: str = "sdpa"
) -> tuple[AnyCLOCModel, CLOCProcessor]:
    """A model to train, and its processor.

    Args:
        config: section `model`; `init_from` names a checkpoint to start from.
        loss: section `loss`: scales and biases at the start, and whether points are trained.
        tokenizer: folder or hub id of the tokenizer.
        attention: kernel, as `transformers` names it; see `attention`.

    Raises:
        ConfigError: checkpoint or tokenizer cannot be loaded, or has other shapes than the settings say.
    """
    if config.init_from:
        model, learned = _from_checkpoint(config, attention=attention)
        processor = CLOCProcessor.for_model(model.config, tokenizer=tokenizer, images=config.init_from)
    else:
        tok = _load(AutoTokenizer, tokenizer, what="tokenizer")
        settings = from_settings(
            config, vocab_size=len(tok), bos=tok.bos_token_id, eos=tok.eos_token_id, pad=tok.pad_token_id
        )
        settings._attn_implementation = attention
        model, learned = FAMILIES[config.family](settings), frozenset[str]()
        processor = CLOCProcessor.for_model(settings, tokenizer=tokenizer, images=None)
    _start(model, loss, learned=learned)
    if loss.point_share and not model.has_prompter:
        raise ConfigError(
            "loss.point_share: RoIAlign takes no points; set it to 0, or model.prompter.kind: transformer"
        )
    model.config.cloc["points"] = bool(loss.point_share) or bool(model.config.cloc["points"])
    return model, processor


@dataclass(frozen=True)
class Loaded:
    """A model that was loaded, and what its checkpoint held.

    Attributes:
        model: in evaluation mode.
        processor: its processor.
        has_regions: whether the checkpoint brought the region parts; a public CLIP's are at their start, and no use.
    """

    model: AnyCLOCModel
    processor: CLOCProcessor
    has_regions: bool


def load(
    folder: str | Path, *, device: str | torch.device = "cpu", attention: str = "sdpa"
) -> tuple[AnyCLOCModel, CLOCProcessor]:
    """A trained model in evaluation mode and its processor, from the folder that training wrote (or a hub id).

    Raises:
        ConfigError: it cannot be loaded.
    """
    loaded = load_any(folder, device=device, attention=attention)
    return loaded.model, loaded.processor


def load_any(folder: str | Path, *, device: str | torch.device = "cpu", attention: str = "sdpa") -> Loaded:
    """A model from any folder or hub id of a CLIP or SigLIP, with or without region parts.

    Raises:
        ConfigError: it cannot be loaded, or lacks weights of the family.
    """
    source, what = str(folder), "model"
    options = {"attn_implementation": attention, "output_loading_info": True}
    cls = _class(source, what=what)
    model, loading = _load(cls, source, what=what, **options, **_WEIGHTS)
    _check_complete(source, cls, loading["missing_keys"])
    absent = [name for name in loading["missing_keys"] if name != "logit_bias"]
    processor = CLOCProcessor.for_model(model.config, tokenizer=source, images=source)
    return Loaded(model.eval().to(device), processor, has_regions=not absent)


def _check_complete(source: str, cls: type, missing: Collection[str]) -> None:
    """Raises ConfigError when a checkpoint lacks more than region parts."""
    lacking = sorted(name for name in missing if not name.startswith(_REGION_PARTS))
    if lacking:
        raise ConfigError(f"{source}: the checkpoint lacks {len(lacking)} weights of a {cls.__name__}, as {lacking[0]}")


def _class(source: str, *, what: str) -> type[CLOCModel] | type[CLOCSiglipModel]:
    """The class of a checkpoint, by its model_type."""
    try:
        family = PreTrainedConfig.get_config_dict(source)[0].get("model_type")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot load the {what} {source!r}: {str(error).splitlines()[0]}") from None
    if family not in FAMILIES:
        raise ConfigError(
            f"cannot load the {what} {source!r}: its model_type is {family!r}; there are {', '.join(FAMILIES)} "
            "(SigLIP 2 in its fixed-resolution checkpoints, which are of the type siglip)"
        )
    return FAMILIES[family]


def architecture(config: ModelConfig) -> AnyCLOCConfig:
    """The configuration of the model that `create` makes, without a tokenizer: its special tokens are any, and its
    vocabulary is the settings' where no checkpoint says.

    Raises:
        ConfigError: the checkpoint cannot be read.
    """
    if not config.init_from:
        return from_settings(config, vocab_size=config.text.vocab_size, bos=0, eos=1, pad=2)
    settings = _checkpoint_settings(config)
    settings.vision_config.image_size = config.init_image_size or settings.vision_config.image_size
    return settings


def from_architecture(config: AnyCLOCConfig) -> AnyCLOCModel:
    """A model of that configuration, its weights at their start."""
    return FAMILIES[config.model_type](config)


def _checkpoint_settings(config: ModelConfig) -> AnyCLOCConfig:
    """The configuration of the checkpoint that the settings name, with their region parts."""
    settings: AnyCLOCConfig = _load(
        _class(config.init_from, what="checkpoint").config_class, config.init_from, what="checkpoint"
    )
    settings.cloc = (settings.cloc or {}) | config.prompter.model_dump()
    return settings


def _from_checkpoint(config: ModelConfig, *, attention: str) -> tuple[AnyCLOCModel, frozenset[str]]:
    """A model with a checkpoint's weights, and the names of its parameters that the checkpoint held."""
    source, what = config.init_from, "checkpoint"
    cls, settings = _class(source, what=what), _checkpoint_settings(config)
    options = {"config": settings, "attn_implementation": attention, "output_loading_info": True}
    model, loading = _load(cls, source, what=what, **options, **_WEIGHTS)
    _check_complete(source, cls, loading["missing_keys"])
    learned = frozenset(dict(model.named_parameters())) - frozenset(loading["missing_keys"])
    if config.init_image_size:
        model = resized(model, image_size=config.init_image_size)
    return model, learned


def _start(model: AnyCLOCModel, loss: LossConfig, *, learned: Collection[str]) -> None:
    """Scales and biases before training; what a checkpoint brought is kept."""
    scale = math.log(loss.init_scale)
    values = {"logit_scale": scale, "region_logit_scale": scale}
    values |= {"logit_bias": loss.init_bias, "region_logit_bias": loss.init_bias}
    with torch.no_grad():
        for name, value in values.items():
            if name not in learned:
                getattr(model, name).fill_(value)


def resized(model: AnyCLOCModel, *, image_size: int) -> AnyCLOCModel:
    """The model for another network input, its position embeddings interpolated (bicubic); returned as a new model.

    Raises:
        ConfigError: the size is not a multiple of the patch size.
    """
    vision = model.config.vision_config
    if image_size % vision.patch_size:
        raise ConfigError(f"model.init_image_size {image_size} must be divisible by the patch size {vision.patch_size}")
    config = copy.deepcopy(model.config)
    config.vision_config.image_size = image_size
    config._attn_implementation = model.config._attn_implementation
    bigger, state, name = type(model)(config), model.state_dict(), _POSITIONS
    prefix, grid = model.prefix_tokens, image_size // vision.patch_size
    square_1DGG = state[name][prefix:].T.unflatten(1, (model.grid, model.grid))[None]
    patches_1DGG = F.interpolate(square_1DGG.float(), (grid, grid), mode="bicubic", antialias=True)
    state[name] = torch.cat([state[name][:prefix], patches_1DGG[0].flatten(1).T.to(state[name].dtype)])
    bigger.load_state_dict(state)
    return bigger


_POSITIONS = "vision_model.embeddings.position_embedding.weight"


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps `transformers` from drawing bars and from listing what a checkpoint holds beside or lacks of the class that
    reads it: what matters of that is checked here."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _load(cls: Any, source: str, *, what: str, **options: Any) -> Any:
    try:
        with quiet():
            return cls.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot load the {what} {source!r}: {str(error).splitlines()[0]}") from None
