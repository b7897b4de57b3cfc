"""Making adapters: a tower from a model folder, a decoder made from its config or named, and what joins them."""

import copy
import inspect
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
    SiglipVisionModel,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.pytorch_utils import Conv1D

from cloc.config.schema import AdapterConfig, DecoderConfig, RegionSamplerKind
from cloc.errors import ConfigError
from cloc.mllm.conversation import IMAGE_TOKEN, REGION_TOKEN
from cloc.mllm.model import Adapter
from cloc.mllm.sampler import make_sampler, prefix_tokens
from cloc.mllm.tokenizer import number_ids
from cloc.model.factory import attention, quiet, uses_bfloat16
from cloc.model.processing import pixel_statistics

_WORD_STD = 0.5  # words start as large as the image's tokens
_TOWERS: dict[str, type[CLIPVisionModel] | type[SiglipVisionModel]] = {
    "clip": CLIPVisionModel,
    "clip_vision_model": CLIPVisionModel,
    "siglip": SiglipVisionModel,
    "siglip_vision_model": SiglipVisionModel,
}
# Layers that packed conversations can be kept apart in: others carry a state from token to token.
_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


@dataclass(frozen=True)
class Tower:
    """A vision tower.

    Attributes:
        model: frozen, in evaluation mode.
        pixel_mean, pixel_std: how its pixels are normalised, of RGB in [0, 1].
    """

    model: CLIPVisionModel | SiglipVisionModel
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]


def load_tower(encoder: str | Path, *, images: str | Path = "", kernel: str = "eager") -> Tower:
    """The vision tower of a folder or hub id of a CLIP, SigLIP or CLOC model.

    Args:
        encoder: the model, or a tower alone.
        images: folder of its image processor where that is another one.
        kernel: of the attention, as `transformers` names it.

    Raises:
        ConfigError: there is none, or nothing says how its pixels are normalised.
    """
    try:
        family = PreTrainedConfig.get_config_dict(str(encoder))[0].get("model_type")
        if family not in _TOWERS:
            raise ConfigError(
                f"{encoder}: the adapter takes the vision tower of a CLIP or SigLIP, this is of the type {family!r}"
            )
        with quiet():  # the folder holds text encoder and Prompter, too
            tower = _TOWERS[family].from_pretrained(str(encoder), attn_implementation=kernel, dtype=torch.float32)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"no CLIP, SigLIP or CLOC model in {encoder}: {str(error).splitlines()[0]}") from None
    mean, std = pixel_statistics(str(images or encoder))
    return Tower(tower.requires_grad_(False).eval(), tuple(mean), tuple(std))


def make_adapter(
    encoder: str | Path,
    tokenizer: Any,
    config: DecoderConfig,
    *,
    seed: int,
    region_sampler: RegionSamplerKind = "none",
) -> Adapter:
    """A new model whose decoder is a Llama made from `config`, trained whole.

    Args:
        encoder: model folder.
        tokenizer: trained on the instructions; copied.
        config: section `adapter.decoder`.
        seed: of the weights.
        region_sampler: setting `adapter.region_sampler`.

    Raises:
        ConfigError: the encoder cannot be loaded, or has no region parts for the sampler.
    """
    torch.manual_seed(seed)
    tokenizer = _with_special_tokens(copy.deepcopy(tokenizer), regions=False)
    decoder = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            intermediate_size=int(config.width * config.mlp_ratio),
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=config.context_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=False,
            # The usual 0.02 suits widths of thousands: a narrow decoder would learn nothing for hundreds of steps.
            initializer_range=1 / math.sqrt(config.width),
            attn_implementation="eager",
        )
    )
    nn.init.normal_(decoder.get_input_embeddings().weight, std=_WORD_STD)
    for words in (decoder.get_input_embeddings(), decoder.get_output_embeddings()):
        _order_numbers(words.weight, number_ids(tokenizer))
    if region_sampler != "none":
        _with_special_tokens(tokenizer, regions=True)
        decoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tower = load_tower(encoder)
    torch.manual_seed(seed)  # the same projector with and without a sampler
    model = assemble(tower, decoder, tokenizer)
    sampler = make_sampler(region_sampler, encoder, tower=tower.model.config, width=config.width)
    return Adapter(model, tokenizer, tower.pixel_mean, tower.pixel_std, sampler=sampler)


def name_adapter(encoder: str | Path, config: AdapterConfig, *, device: torch.device) -> Adapter:
    """A new model on a named language model: projector and LoRA (or the projector alone) are trained.

    Args:
        encoder: model folder.
        config: section `adapter`.
        device: where it will run, which decides on the frozen weights' precision.

    Raises:
        ConfigError: the language model cannot be loaded or used, LoRA finds no attention layers in it, or the encoder
            has no region parts for the sampler.
    """
    torch.manual_seed(config.seed)
    kernel = attention(config.precision, device)
    tower, regions = load_tower(encoder, kernel=kernel), config.region_sampler != "none"
    dtype = torch.bfloat16 if uses_bfloat16(config.precision, device) else torch.float32
    tokenizer, decoder = load_decoder(config.language_model, regions=regions, dtype=dtype, kernel=kernel)
    model = assemble(tower, decoder, tokenizer)
    lora = _add_lora(model, rank=config.lora_rank, name=config.language_model) if config.lora_rank else None
    width = int(model.config.text_config.hidden_size)
    sampler = make_sampler(config.region_sampler, encoder, tower=tower.model.config, width=width)
    adapter = Adapter(model, tokenizer, tower.pixel_mean, tower.pixel_std, config.language_model, lora, sampler)
    adapter.trainable("tune")
    return adapter


def load_decoder(name: str, *, regions: bool, dtype: torch.dtype, kernel: str = "sdpa") -> tuple[Any, Any]:
    """Tokenizer and causal language model of a folder or hub id.

    Args:
        name: of the language model.
        regions: whether the tokenizer gets a region token.
        dtype: of the weights.
        kernel: of the attention, as `transformers` names it.

    Raises:
        ConfigError: it cannot be loaded or used.
    """
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(name)
            # By itself it takes sdpa where a model has it.
            options = {} if kernel == "sdpa" else {"attn_implementation": kernel}
            decoder = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **options)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"adapter.language_model: cannot load {name!r}: {reason}") from None
    _check_decoder(decoder, name=name)
    tokenizer = _with_special_tokens(tokenizer, regions=regions)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    words = decoder.get_input_embeddings().num_embeddings
    if len(tokenizer) > words:
        # The special tokens' own embeddings are never looked at: images and regions take their places. As outputs they
        # must be the same wherever the model is loaded.
        decoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        for layer in (decoder.get_input_embeddings(), decoder.get_output_embeddings()):
            layer.weight.data[words:] = 0
    return tokenizer, decoder


def assemble(tower: Tower, decoder: Any, tokenizer: Any) -> LlavaForConditionalGeneration:
    """Puts loaded parts together; nothing is allocated twice. The projector is new."""
    vision = tower.model.config
    # LLaVA knows tied words by one name; elsewhere (GPT-2) they stay one tensor without being told.
    decoder.config.tie_word_embeddings = bool(decoder.config.tie_word_embeddings) and hasattr(
        decoder.base_model, "embed_tokens"
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=decoder.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=prefix_tokens(vision) + (vision.image_size // vision.patch_size) ** 2,
        # The paper's spatial tokens: the last block's output (with [CLS]), before the last norm (METHOD, Model).
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=decoder.config.tie_word_embeddings,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower = tower.model
    model.model.language_model = decoder.base_model
    model.lm_head = decoder.get_output_embeddings()
    model.model.multi_modal_projector = _projector(config)
    model.generation_config = decoder.generation_config
    kernels = {"vision_config": vision._attn_implementation, "text_config": decoder.config._attn_implementation}
    model.set_attn_implementation(kernels)
    return model.eval()


def attention_layers(decoder: nn.Module) -> list[str]:
    """The linear layers inside a decoder's attention, each once by its last names: "self_attn.q_proj", ..."""
    attending = [name for name, part in decoder.named_modules() if "attention" in type(part).__name__.lower()]
    found: dict[str, None] = {}
    for name, part in decoder.named_modules():
        inside = any(name.startswith(f"{parent}.") for parent in attending)
        if inside and isinstance(part, nn.Linear | Conv1D):
            found[".".join(name.split(".")[-2:])] = None
    return list(found)


def _add_lora(model: LlavaForConditionalGeneration, *, rank: int, name: str) -> Any:
    from peft import LoraConfig, get_peft_model

    layers = attention_layers(model.model.language_model)
    if not layers:
        raise ConfigError(
            f"adapter.language_model: no linear attention layers in {name} for LoRA; set adapter.lora_rank to 0, which "
            "trains the projector alone"
        )
    names = "|".join(re.escape(layer) for layer in layers)
    settings = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=rf".*language_model\.(.*\.)?({names})",
        fan_in_fan_out=any(isinstance(part, Conv1D) for part in model.model.language_model.modules()),
    )
    return get_peft_model(model, settings)


def _check_decoder(decoder: Any, *, name: str) -> None:
    """Whether packed conversations behind one image stay apart in it."""
    config, parameters = decoder.config, inspect.signature(decoder.base_model.forward).parameters
    reason = ""
    if "position_ids" not in parameters or "attention_mask" not in parameters:
        reason = "takes no positions"
    elif getattr(config, "max_position_embeddings", None) is None:
        reason = "does not say how long its context is (max_position_embeddings)"
    elif others := set(getattr(config, "layer_types", None) or ()) - _ATTENTION_LAYERS:
        reason = f"has layers that are no attention ({', '.join(sorted(others))})"
    elif decoder.get_output_embeddings() is None:
        reason = "has no output layer"
    if reason:
        raise ConfigError(f"adapter.language_model: {name} ({config.model_type}) {reason}; name a plain transformer")


def _with_special_tokens(tokenizer: Any, *, regions: bool) -> Any:
    wanted = [IMAGE_TOKEN, REGION_TOKEN] if regions else [IMAGE_TOKEN]
    missing = [token for token in wanted if token not in tokenizer.get_vocab()]
    if missing:
        tokenizer.add_special_tokens({"additional_special_tokens": missing}, replace_extra_special_tokens=False)
    return tokenizer


def _projector(config: LlavaConfig) -> LlavaMultiModalProjector:
    """Kept in float32: it is trained."""
    projector = LlavaMultiModalProjector(config)
    for layer in (projector.linear_1, projector.linear_2):
        nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))
        nn.init.zeros_(layer.bias)
    return projector


@torch.no_grad()
def _order_numbers(words_VD: Tensor, places: dict[int, float]) -> None:
    """Starts the numbers of boxes as sinusoids of their place, read and written, so that near bins are alike."""
    width, size = words_VD.shape[1], words_VD.std() * math.sqrt(2)
    frequencies_F = math.pi * 2.0 ** torch.linspace(0, 5, width // 2)
    for token, place in places.items():
        angles_F = place * frequencies_F
        words_VD[token] = size * torch.cat([angles_F.sin(), angles_F.cos(), torch.zeros(width % 2)])
