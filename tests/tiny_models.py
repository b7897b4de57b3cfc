"""Tiny checkpoints of the real model classes, made from small configs and saved as a public one would be.

folder = save_owl(tmp_path / "owlv2", "owlv2")
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPTextConfig,
    DetrImageProcessorPil,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    OmDetTurboConfig,
    OmDetTurboForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessorPil,
    Owlv2Processor,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessorPil,
    OwlViTProcessor,
    PreTrainedTokenizerFast,
    SwinConfig,
)

WORDS = """
    a the red green blue yellow box ball key apple left right of and large small
""".split()  # noqa: SIM905 (a list of words reads best as words)


def _tokenizer(tokens: list[str], *, start: str, end: str, pad: str, unknown: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(tokens)}, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, tokens.index(start)), (end, tokens.index(end))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token=end,
        cls_token=start,
        sep_token=end,
        pad_token=pad,
        unk_token=unknown,
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


def save_detector(folder: str | Path, kind: str, *, seed: int = 0) -> str:
    """A detector of any model type that the `transformers` backend knows."""
    makers = {"owlvit": save_owl, "owlv2": save_owl, "omdet-turbo": save_omdet}
    return makers.get(kind, save_grounding_dino)(folder, kind, seed=seed)


def _swin(**changes) -> SwinConfig:
    sizes = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
    return SwinConfig(image_size=64, patch_size=4, out_indices=[2, 3, 4], **sizes, **changes)


def save_grounding_dino(
    folder: str | Path, kind: str = "grounding-dino", *, num_queries: int = 20, seed: int = 0
) -> str:
    """A Grounding DINO ("grounding-dino") or MM-Grounding-DINO ("mm-grounding-dino") of `num_queries` proposals, 24
    tokens of text and images of 64 by 128 pixels at most."""
    torch.manual_seed(seed)
    # BERT's numbers: the class has those of [CLS], [SEP], "." and "?" written into it.
    tokens = ["[PAD]", *(f"[unused{number}]" for number in range(1, 1030))]
    tokens[100:103] = ["[UNK]", "[CLS]", "[SEP]"]
    tokens[200 : 200 + len(WORDS)] = WORDS
    tokens[1012], tokens[1029] = ".", "?"
    configs = {"grounding-dino": GroundingDinoConfig, "mm-grounding-dino": MMGroundingDinoConfig}
    classes = {
        "grounding-dino": GroundingDinoForObjectDetection,
        "mm-grounding-dino": MMGroundingDinoForObjectDetection,
    }
    layers = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in _DETR_SIZES.items()}
    config = configs[kind](
        backbone_config=_swin(),
        text_config=BertConfig(
            vocab_size=len(tokens),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=32,
        ),
        **layers,
        d_model=64,
        num_queries=num_queries,
        max_text_len=24,
    )
    _with_large_weights(classes[kind](config)).save_pretrained(folder)
    tokenizer = _tokenizer(tokens, start="[CLS]", end="[SEP]", pad="[PAD]", unknown="[UNK]")
    picture = GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 128})
    GroundingDinoProcessor(picture, tokenizer).save_pretrained(folder)
    return str(folder)


_DETR_SIZES = {"layers": 2, "ffn_dim": 32, "attention_heads": 4}


def save_omdet(folder: str | Path, kind: str = "omdet-turbo", *, seed: int = 0) -> str:
    """An OmDet-Turbo of 20 proposals and 64-pixel images, with a CLIP-like vocabulary and a backbone without timm."""
    torch.manual_seed(seed)
    tokens = ["!", "<unk>", *WORDS, "detect", "<|startoftext|>", "<|endoftext|>"]
    config = OmDetTurboConfig(
        backbone_config=_swin().to_dict(),
        text_config=CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            pad_token_id=0,
            bos_token_id=len(tokens) - 2,
            eos_token_id=len(tokens) - 1,
        ).to_dict(),
        image_size=64,
        num_queries=20,
        # As they come, only feature maps of timm suit this norm.
        apply_layernorm_after_vision_backbone=False,
        text_projection_in_dim=16,
        text_projection_out_dim=16,
        class_embed_dim=16,
        task_encoder_hidden_dim=32,
        encoder_in_channels=[16, 32, 64],
        vision_features_channels=[32, 32, 32],
        encoder_hidden_dim=32,
        encoder_attention_heads=4,
        encoder_dim_feedforward=32,
        decoder_hidden_dim=32,
        decoder_num_heads=4,
        decoder_num_layers=2,
        decoder_dim_feedforward=32,
    )
    _with_large_weights(OmDetTurboForObjectDetection(config)).save_pretrained(folder)
    tokenizer = _tokenizer(tokens, start="<|startoftext|>", end="<|endoftext|>", pad="!", unknown="<unk>")
    # Its processor class needs torchvision: the parts are saved by themselves, under the names it would give them.
    tokenizer.save_pretrained(folder)
    DetrImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return str(folder)


def _with_large_weights(model: torch.nn.Module) -> torch.nn.Module:
    """So that scores and boxes differ: as they come, the last layers of DETR's box heads are 0."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "bbox" in name:
                weight.normal_(std=0.2)
            elif weight.ndim == 2:
                weight.mul_(1.5)
    return model
