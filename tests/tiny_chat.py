"""Tiny captioners that are no BLIP: chat models, BLIP-2, GIT, an encoder with a decoder, saved as public ones are.

folder = save_llava(tmp_path / "llava")

Chat models read and write bytes, so that any prompt and any template can be told from their tokens.
"""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    GPT2Config,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessorPil,
)

from tests.tiny_models import WORDS

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
LLAMA: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 1024, "initializer_range": 0.3}
LLAVA_TEMPLATE = (
    "{% for message in messages %}USER: {% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IDEFICS_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] }}:{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def byte_tokenizer(special: list[str], *, begin: str = "", **roles: Any) -> PreTrainedTokenizerFast:
    """A token a byte, and the special ones; one of them may begin every text."""
    vocabulary = {char: number for number, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """BERT-like: [CLS] words [SEP]."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]"
    )


def save_llava(folder: str | Path, *, template: str = LLAVA_TEMPLATE, seed: int = 0) -> str:
    """LLaVA: every picture is 32 pixels square. Its tokenizer begins with <s>, which the template leaves to it."""
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer(
        ["<s>", "</s>", "<pad>", "<image>"],
        begin="<s>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            **SIZES,
            "image_size": 32,
            "patch_size": 16,
            "initializer_range": 0.3,
        },
        text_config={"model_type": "llama", **LLAMA, **ids, "vocab_size": len(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)
    return str(folder)


def save_qwen(folder: str | Path, *, seed: int = 0) -> str:
    """Qwen2-VL: pictures keep their shape, so that larger ones take more tokens. Its files are those of the hub, where
    the processor's part for videos is named but not saved apart."""
    torch.manual_seed(seed)
    special = [
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ]
    tokenizer = byte_tokenizer(special, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in special}
    config = Qwen2VLConfig(
        text_config={
            **LLAMA,
            "vocab_size": len(tokenizer),
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 1,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "initializer_range": 0.3,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    Qwen2VLImageProcessorPil(
        size={"shortest_edge": 16 * 16, "longest_edge": 16 * 16 * 24}, patch_size=8, merge_size=2, temporal_patch_size=2
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = Path(folder)
    (path / "chat_template.jinja").write_text(QWEN_TEMPLATE)
    pictures = json.loads((path / "preprocessor_config.json").read_text())
    (path / "preprocessor_config.json").write_text(json.dumps({**pictures, "processor_class": "Qwen2VLProcessor"}))
    return str(folder)


def save_idefics(folder: str | Path, *, seed: int = 0) -> str:
    """Idefics3: a picture is cut into tiles, by its shape."""
    torch.manual_seed(seed)
    tokenizer, config = _tiles(Idefics3Config)
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    pictures = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    Idefics3Processor(pictures, tokenizer, image_seq_len=4, chat_template=IDEFICS_TEMPLATE).save_pretrained(folder)
    return str(folder)


def save_smolvlm(folder: str | Path, *, seed: int = 0) -> str:
    """SmolVLM: as Idefics3, with a part for videos. Its files are those of the hub."""
    torch.manual_seed(seed)
    tokenizer, config = _tiles(SmolVLMConfig)
    SmolVLMForConditionalGeneration(config).save_pretrained(folder)
    SmolVLMImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (Path(folder) / "chat_template.jinja").write_text(IDEFICS_TEMPLATE)
    processor = {"processor_class": "SmolVLMProcessor", "image_seq_len": 4}
    (Path(folder) / "processor_config.json").write_text(json.dumps(processor))
    return str(folder)


def _tiles(kind: type[Any]) -> tuple[PreTrainedTokenizerFast, Any]:
    special = [
        "<|im_start|>",
        "<end_of_utterance>",
        "<pad>",
        "<fake_token_around_image>",
        "<image>",
        "<global-img>",
        *(f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)),
    ]
    tokenizer = byte_tokenizer(special, bos_token="<|im_start|>", eos_token="<end_of_utterance>", pad_token="<pad>")
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    config = kind(
        vision_config={**SIZES, "image_size": 32, "patch_size": 8, "initializer_range": 0.3},
        text_config={"model_type": "llama", **LLAMA, **ids, "vocab_size": len(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
    )
    return tokenizer, config


def save_git(folder: str | Path, *, seed: int = 0) -> str:
    """GIT: continues a text."""
    torch.manual_seed(seed)
    tokenizer = word_tokenizer()
    config = GitConfig(
        vision_config={**SIZES, "image_size": 32, "patch_size": 16},
        **SIZES,
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        initializer_range=1.0,
    )
    GitForCausalLM(config).save_pretrained(folder)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    GitProcessor(pictures, tokenizer).save_pretrained(folder)
    return str(folder)


def save_encoder_decoder(folder: str | Path, *, seed: int = 0) -> str:
    """A ViT with a GPT-2 decoder, without a processor of its own: image processor and tokenizer apart."""
    torch.manual_seed(seed)
    tokenizer = word_tokenizer()
    vision = ViTConfig(**SIZES, image_size=32, patch_size=16, initializer_range=0.3)
    text = GPT2Config(
        n_embd=32,
        n_layer=1,
        n_head=2,
        n_positions=64,
        vocab_size=len(tokenizer),
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
        initializer_range=1.0,
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 2, 0, 3
    model = VisionEncoderDecoderModel(config=config)
    model.generation_config.decoder_start_token_id = 2
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 3, 0
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_blip2(folder: str | Path, *, seed: int = 0) -> str:
    """BLIP-2: the image's tokens stand before a text, and the answer stands alone."""
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer(
        ["<pad>", "</s>", "<image>"],
        bos_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    config = Blip2Config(
        vision_config={**SIZES, "image_size": 32, "patch_size": 16, "initializer_range": 0.3},
        qformer_config={**SIZES, "encoder_hidden_size": 32, "vocab_size": 50, "initializer_range": 0.3},
        text_config={"model_type": "llama", **LLAMA, **ids, "vocab_size": len(tokenizer)},
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    pictures = BlipImageProcessorPil(size={"height": 32, "width": 32})
    Blip2Processor(pictures, tokenizer, num_query_tokens=4).save_pretrained(folder)
    return str(folder)
