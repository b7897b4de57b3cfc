"""Tiny encoders, decoders and adapters, and conversations for them.

encoder = save_encoder(tmp_path / "encoder")
adapter = make_tiny(encoder, region_sampler="prompter")
"""

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    CLIPModel,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from cloc.config.schema import DecoderConfig, ModelConfig, TextConfig, VisionConfig
from cloc.mllm.building import make_adapter
from cloc.mllm.conversation import REGION_TOKEN, Conversation, Task, Turn
from cloc.mllm.model import Adapter
from cloc.mllm.tokenizer import train_tokenizer
from cloc.model.configuration import from_settings
from cloc.model.modeling import CLOCModel, CLOCSiglipModel
from cloc.model.processing import CLOCProcessor
from cloc.model.processing import train_tokenizer as train_clip_tokenizer

TEXTS = [
    f"{color} {thing}" for color in ("red", "green", "blue", "yellow") for thing in ("box", "ball", "key", "apple")
]
WORDINGS = ["what is in [1 2 3 4]?", "where is the", "and what is its color?", "the image", "yes", "no"]
DECODER = DecoderConfig(width=64, layers=2, heads=2, mlp_ratio=2.0, context_length=96, vocab_size=900)
# Templates of public models, as short as they show what is special about them.
QWEN = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3 = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
VICUNA = (  # nothing ends an answer: the end-of-text token does
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: {{ message['content'] }} "
    "{% else %}ASSISTANT: {{ message['content'] }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
LLAMA2 = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {"qwen": QWEN, "qwen3": QWEN3, "llama3": LLAMA3, "vicuna": VICUNA, "llama2": LLAMA2}
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
_SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def save_encoder(folder: str | Path, *, family: str = "clip", objective: str = "cloc", seed: int = 0) -> str:
    """A CLOC model of 64-pixel images, patches of 16 and width 64, as pre-training leaves it."""
    torch.manual_seed(seed)
    tokenizer = train_clip_tokenizer(TEXTS, vocab_size=600, context_length=16)
    settings = ModelConfig(
        family=family,
        embed_dim=64 if family == "siglip" else 32,  # SigLIP's is the tower's width
        vision=VisionConfig(width=64, layers=2, heads=2, image_size=64, patch_size=16),
        text=TextConfig(width=64 if family == "siglip" else 32, layers=1, heads=2, context_length=16, vocab_size=600),
    )
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    config = from_settings(settings, vocab_size=len(tokenizer), **ids)
    siglip = family == "siglip"
    (CLOCSiglipModel if siglip else CLOCModel)(config).save_pretrained(folder)
    pixels: dict[str, Any] = {"pixel_mean": (0.5,) * 3, "pixel_std": (0.5,) * 3} if siglip else {}
    CLOCProcessor(tokenizer, image_size=64, context_length=16, pad_to_full_length=siglip, **pixels).save_pretrained(
        folder
    )
    (Path(folder) / "training.json").write_text(json.dumps({"objective": objective, "steps": 0}))
    return str(folder)


def save_plain_clip(folder: str | Path, encoder: str) -> str:
    """The same weights as a public CLIP: without region parts."""
    CLIPModel.from_pretrained(encoder).save_pretrained(folder)
    CLOCProcessor(
        train_clip_tokenizer(TEXTS, vocab_size=600, context_length=16), image_size=64, context_length=16
    ).save_pretrained(folder)
    return str(folder)


def save_siglip_tower(folder: str | Path, *, seed: int = 0) -> str:
    """A SigLIP vision tower alone."""
    torch.manual_seed(seed)
    SiglipVisionModel(SiglipVisionConfig(**_SIZES, image_size=64, patch_size=16)).save_pretrained(folder)
    SiglipImageProcessorPil(
        size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
    return str(folder)


@cache
def _tokenizer() -> Any:
    return train_tokenizer(TEXTS * 50 + WORDINGS * 50, vocab_size=DECODER.vocab_size, context_length=96)


def tiny_tokenizer(template: str = "") -> Any:
    """A tokenizer of its own; `template` one of TEMPLATES instead of that of made decoders."""
    tokenizer = copy.deepcopy(_tokenizer())
    if template:
        tokenizer.chat_template = TEMPLATES[template]
        tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL}, replace_extra_special_tokens=False)
    return tokenizer


def make_tiny(encoder: str, *, region_sampler: str = "none", seed: int = 0) -> Adapter:
    """An adapter whose decoder is made from its config."""
    return make_adapter(encoder, tiny_tokenizer(), DECODER, seed=seed, region_sampler=region_sampler)


def decoder_config(kind: str, *, vocab_size: int) -> PreTrainedConfig:
    """A causal language model of 32 dimensions and 2 layers."""
    sizes = {**_SIZES, "vocab_size": vocab_size, "max_position_embeddings": 320, "initializer_range": 0.3}
    configs: dict[str, Any] = {
        "llama": LlamaConfig,
        "qwen2": Qwen2Config,
        "gpt_neox": GPTNeoXConfig,
        "phi": PhiConfig,
    }
    if kind == "gpt2":
        return GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=320, vocab_size=vocab_size, initializer_range=0.3)
    extra: dict[str, Any] = {"qwen2": {"num_key_value_heads": 1, "tie_word_embeddings": True}}.get(kind, {})
    return configs[kind](**sizes, **extra)


def save_decoder(folder: str | Path, kind: str = "llama", *, template: str = "qwen", seed: int = 1) -> str:
    """A random causal language model with its tokenizer."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer(template)
    AutoModelForCausalLM.from_config(decoder_config(kind, vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def a_refer(answer: str = "red key", *, box: tuple[float, ...] = (0.1, 0.2, 0.5, 0.6), tokens: bool = False):
    """A conversation of one turn about a box."""
    question = f"what is in [10 20 49 59]{' ' + REGION_TOKEN if tokens else ''}?"
    regions = np.array([box]) if tokens else np.zeros((0, 4))
    return Conversation(Task.REFER, (Turn(question, answer),), regions=regions, label=answer.split()[-1])


def a_ground(phrase: str = "blue apple", answer: str = "[10 20 49 59]") -> Conversation:
    """A conversation of one turn that asks for a box."""
    return Conversation(Task.GROUND, (Turn(f"where is the {phrase}?", answer),))


def a_talk(*, tokens: bool = False) -> Conversation:
    """A conversation of three turns, about two regions."""
    region = f" {REGION_TOKEN}" if tokens else ""
    turns = (
        Turn(f"what is in [10 20 49 59]{region}?", "red key"),
        Turn("and what is its color?", "red"),
        Turn(f"what is in [50 60 69 89]{region}?", "blue box"),
    )
    boxes = np.array([[0.1, 0.2, 0.5, 0.6], [0.5, 0.6, 0.7, 0.9]])
    return Conversation(Task.OTHER, turns, regions=boxes if tokens else np.zeros((0, 4)))


def noise(images: int, *, seed: int = 0) -> torch.Tensor:
    """Random pictures (B, 64, 64, 3), uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 255, (images, 64, 64, 3), dtype=torch.uint8, generator=generator)
