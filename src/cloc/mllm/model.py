"""The LLaVA-style model: a frozen CLIP or CLOC vision tower, a projector, a causal language model.

    adapter = load_adapter("adapter")          # what the stage wrote
    adapter.model                              # transformers' LlavaForConditionalGeneration

Two forms on disk:
    decoder made from its config   the whole model: `LlavaForConditionalGeneration.from_pretrained(folder)`
    a named language model         vision_tower/, projector.safetensors, lora/ (peft), and adapter.json, which names it
Both hold the tokenizer and adapter.json.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from cloc.config.schema import AdapterConfig, DecoderConfig
from cloc.data.transforms import PIXEL_MEAN, PIXEL_STD
from cloc.errors import ConfigError
from cloc.mllm.chat import IMAGE_TOKEN
from cloc.mllm.tokenizer import number_ids
from cloc.model.factory import quiet

ADAPTER_FILE = "adapter.json"
_TOWER, _PROJECTOR, _LORA = "vision_tower", "projector.safetensors", "lora"
_WORD_STD = 0.5  # words start as large as the image's tokens
_ATTENTION = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj)"


@dataclass(frozen=True)
class Adapter:
    """A model that answers about images.

    Attributes:
        model: the whole model; LoRA layers, where there are any, sit inside it.
        tokenizer: of the decoder, with the image token and a chat template.
        language_model: the named language model; "" for one made from its config.
        lora: peft's wrapper around `model`, which saves and loads the LoRA layers; None without them.
    """

    model: Any
    tokenizer: Any
    language_model: str = ""
    lora: Any = None

    @property
    def image_size(self) -> int:
        """Side of the square network input, pixels."""
        return int(self.model.config.vision_config.image_size)

    @property
    def image_tokens(self) -> int:
        """Tokens that an image takes: [CLS] and one a patch."""
        return int(self.model.config.image_seq_length)

    @property
    def context_length(self) -> int:
        """Longest sequence of the decoder, tokens."""
        return int(self.model.config.text_config.max_position_embeddings)

    @property
    def name(self) -> str:
        """What to call the decoder in messages."""
        return self.language_model or "the made decoder"

    def trainable(self) -> list[nn.Parameter]:
        """What tuning changes."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


def load_tower(encoder: str | Path) -> CLIPVisionModel:
    """The vision tower of a CLIP or CLOC model folder, frozen. Raises ConfigError when there is none.

    SigLIP's towers are refused: their pixels, tokens and layers differ, and nothing here has been measured with them.
    """
    try:
        family = PreTrainedConfig.get_config_dict(str(encoder))[0].get("model_type")
        if family not in ("clip", "clip_vision_model"):
            raise ConfigError(f"{encoder}: the adapter takes a CLIP vision tower, this is of the type {family!r}")
        with quiet():  # the folder holds text encoder and Prompter too
            tower = CLIPVisionModel.from_pretrained(str(encoder), attn_implementation="eager", dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no CLIP or CLOC model in {encoder}: {str(error).splitlines()[0]}") from None
    return tower.requires_grad_(False).eval()


def make_adapter(encoder: str | Path, tokenizer: Any, config: DecoderConfig, *, seed: int) -> Adapter:
    """A new model whose decoder is a Llama made from `config`, trained whole.

    Args:
        encoder: model folder.
        tokenizer: trained on the instructions.
        config: section `adapter.decoder`.
        seed: of the weights.
    """
    torch.manual_seed(seed)
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
    return Adapter(_assemble(load_tower(encoder), decoder, tokenizer), tokenizer)


def name_adapter(encoder: str | Path, config: AdapterConfig, *, device: torch.device) -> Adapter:
    """A new model on a named language model: projector and LoRA (or the projector alone) are trained.

    Args:
        encoder: model folder.
        config: section `adapter`.
        device: where it will run, which decides on the frozen weights' precision.

    Raises:
        ConfigError: the language model cannot be loaded, or LoRA finds no attention projections in it.
    """
    torch.manual_seed(config.seed)
    half = config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda")
    dtype = torch.bfloat16 if half else torch.float32
    adapter = _base(load_tower(encoder), config.language_model, dtype=dtype)
    adapter.model.requires_grad_(False)
    adapter.model.model.multi_modal_projector.requires_grad_(True)
    if not config.lora_rank:
        return adapter
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=config.lora_rank, lora_alpha=2 * config.lora_rank, target_modules=_ATTENTION)
    try:
        lora = get_peft_model(adapter.model, settings)
    except ValueError as error:
        raise ConfigError(
            f"adapter.language_model: no attention projections q_proj, k_proj, v_proj, o_proj in "
            f"{config.language_model} for LoRA ({str(error).splitlines()[0][:120]}); set adapter.lora_rank to 0"
        ) from None
    adapter.model.model.multi_modal_projector.requires_grad_(True)  # peft froze what is not LoRA
    return Adapter(adapter.model, adapter.tokenizer, config.language_model, lora)


def save_adapter(adapter: Adapter, folder: str | Path, *, about: dict[str, Any]) -> None:
    """Writes the model in one of the two forms above; `about` goes into adapter.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = adapter.model
    adapter.tokenizer.save_pretrained(str(folder))
    if adapter.language_model:
        model.model.vision_tower.save_pretrained(str(folder / _TOWER))
        save_file(model.model.multi_modal_projector.state_dict(), folder / _PROJECTOR)
        if adapter.lora is not None:
            adapter.lora.save_pretrained(str(folder / _LORA))
    else:
        model.save_pretrained(str(folder))
    size = {"height": adapter.image_size, "width": adapter.image_size}
    CLIPImageProcessorPil(
        size={"shortest_edge": adapter.image_size}, crop_size=size, image_mean=PIXEL_MEAN, image_std=PIXEL_STD
    ).save_pretrained(str(folder))
    body = {"language_model": adapter.language_model, "lora": adapter.lora is not None, **about}
    (folder / ADAPTER_FILE).write_text(json.dumps(body, indent=2, sort_keys=True) + "\n")


def load_adapter(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> Adapter:
    """Reads what `save_adapter` wrote, a named language model in `dtype`. Raises ConfigError when it holds none."""
    folder = Path(folder)
    try:
        about = json.loads((folder / ADAPTER_FILE).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: no adapter here ({type(error).__name__}: {ADAPTER_FILE})") from None
    if not about["language_model"]:
        model = LlavaForConditionalGeneration.from_pretrained(str(folder), attn_implementation="eager").eval()
        return Adapter(model, AutoTokenizer.from_pretrained(str(folder)))
    adapter = _base(load_tower(folder / _TOWER), about["language_model"], dtype=dtype)
    adapter.model.model.multi_modal_projector.load_state_dict(load_file(folder / _PROJECTOR))
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    if not about["lora"]:
        return Adapter(adapter.model.eval(), tokenizer, about["language_model"])
    from peft import PeftModel

    lora = PeftModel.from_pretrained(adapter.model, str(folder / _LORA))
    return Adapter(adapter.model.eval(), tokenizer, about["language_model"], lora)


def _base(tower: CLIPVisionModel, language_model: str, *, dtype: torch.dtype) -> Adapter:
    try:
        tokenizer = AutoTokenizer.from_pretrained(language_model)
        decoder = AutoModelForCausalLM.from_pretrained(language_model, dtype=dtype)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"adapter.language_model: cannot load {language_model!r}: {reason}") from None
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if len(tokenizer) > decoder.get_input_embeddings().num_embeddings:
        # The image token's own embedding is never looked at: the image's tokens take its place.
        decoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return Adapter(_assemble(tower, decoder, tokenizer), tokenizer, language_model)


def _assemble(tower: CLIPVisionModel, decoder: Any, tokenizer: Any) -> LlavaForConditionalGeneration:
    """Puts loaded parts together; nothing is allocated twice."""
    vision = tower.config
    config = LlavaConfig(
        vision_config=vision,
        text_config=decoder.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=1 + (vision.image_size // vision.patch_size) ** 2,
        # The paper's spatial tokens: the last block's output with [CLS], before the post layer norm (METHOD, Model).
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=bool(decoder.config.tie_word_embeddings),
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower = tower
    model.model.language_model = decoder.base_model
    model.lm_head = decoder.get_output_embeddings()
    model.model.multi_modal_projector = _projector(config)
    model.generation_config = decoder.generation_config
    model.set_attn_implementation({"vision_config": "eager", "text_config": decoder.config._attn_implementation})
    return model.eval()


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
