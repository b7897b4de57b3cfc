"""Tiny checkpoints of the real model classes, made from small configs and saved as a public one would be.

folder = save_owl(tmp_path / "owlv2", "owlv2")
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessorPil,
    Owlv2Processor,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessorPil,
    OwlViTProcessor,
    PreTrainedTokenizerFast,
)

WORDS = "a the red green blue yellow box ball key apple left right of and large small".split()  # noqa: SIM905


def _tokenizer(tokens: list[str], *, start: str, end: str, pad: str, unknown: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(tokens)}, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, tokens.index(start)), (end, tokens.index(end))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=start, eos_token=end, pad_token=pad, unk_token=unknown
    )


def save_blip(folder: str | Path, *, seed: int = 0) -> str:
    """A BLIP captioner of 32-pixel images with a BERT-like vocabulary."""
    torch.manual_seed(seed)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BlipConfig(
        text_config={
            **sizes,
            "vocab_size": len(tokens),
            "encoder_hidden_size": 16,
            "max_position_embeddings": 40,
            "pad_token_id": 0,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "sep_token_id": 3,
        },
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
        projection_dim=16,
        initializer_range=1.0,
    )
    BlipForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = _tokenizer(tokens, start="[CLS]", end="[SEP]", pad="[PAD]", unknown="[UNK]")
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return str(folder)


def save_owl(folder: str | Path, kind: str, *, image_size: int = 64, seed: int = 0) -> str:
    """An OWL-ViT ("owlvit") or OWLv2 ("owlv2") detector with patches of 16 pixels and a CLIP-like vocabulary."""
    torch.manual_seed(seed)
    # CLIP's order: padding first, end of text last, since the text tower pools at the highest token.
    tokens = ["!", "<unk>", *WORDS, "<|startoftext|>", "<|endoftext|>"]
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    configs = {"owlvit": OwlViTConfig, "owlv2": Owlv2Config}
    classes = {"owlvit": OwlViTForObjectDetection, "owlv2": Owlv2ForObjectDetection}
    pictures = {"owlvit": OwlViTImageProcessorPil, "owlv2": Owlv2ImageProcessorPil}
    both = {"owlvit": OwlViTProcessor, "owlv2": Owlv2Processor}
    config = configs[kind](
        text_config={
            **sizes,
            "vocab_size": len(tokens),
            "max_position_embeddings": 16,
            "pad_token_id": 0,
            "bos_token_id": len(tokens) - 2,
            "eos_token_id": len(tokens) - 1,
        },
        vision_config={**sizes, "image_size": image_size, "patch_size": 16},
        projection_dim=16,
    )
    classes[kind](config).save_pretrained(folder)
    tokenizer = _tokenizer(tokens, start="<|startoftext|>", end="<|endoftext|>", pad="!", unknown="<unk>")
    picture = pictures[kind](size={"height": image_size, "width": image_size})
    both[kind](picture, tokenizer).save_pretrained(folder)
    return str(folder)
