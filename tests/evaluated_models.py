"""Tiny models of the real classes for evaluation: as pre-training writes them, and as a hub has them.

models = {"CLIP": write_model(folder / "clip", "clip"), "OpenAI": write_public(folder / "hub", family="siglip")}
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPImageProcessorPil, CLIPModel, SiglipImageProcessorPil, SiglipModel

from cloc.config import Config, parse
from cloc.model.configuration import from_settings
from cloc.model.modeling import CLOCModel
from cloc.model.processing import CLOCProcessor, train_tokenizer

TOWER = {"width": 32, "layers": 2, "heads": 2}
TEXTS = [
    f"a {color} {thing}" for color in ("red", "green", "blue", "yellow") for thing in ("box", "ball", "key", "apple")
]


def settings(
    *, kind: str = "transformer", family: str = "clip", splits: tuple[str, ...] = ("test",), **evaluation: Any
):
    """Settings of a tiny model and of its evaluation."""
    model = {
        "family": family,
        "embed_dim": 32 if family == "siglip" else 16,
        "vision": {**TOWER, "image_size": 32, "patch_size": 8},
        "text": {**TOWER, "context_length": 16, "vocab_size": 600},
        "prompter": {"kind": kind, "spatial_bias": "box"},
    }
    tree = {"model": model, "data": {"test_splits": list(splits)}, "evaluation": {"batch_size": 3, **evaluation}}
    return parse(tree, source="test")


def _sizes(config: Config) -> tuple[Any, Any]:
    tokenizer = train_tokenizer(TEXTS, vocab_size=600, context_length=16)
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    return tokenizer, from_settings(config.model, vocab_size=len(tokenizer), **ids)


def write_model(folder: Path, objective: str, *, seed: int = 0, steps: int = 10, **more: Any) -> str:
    """A folder as pre-training writes it."""
    torch.manual_seed(seed)
    tokenizer, sizes = _sizes(settings(**more))
    CLOCModel(sizes).save_pretrained(folder)
    CLOCProcessor(tokenizer, image_size=32, context_length=16).save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps({"objective": objective, "steps": steps, "cpu_seconds": 1.5}))
    return str(folder)


def write_public(folder: Path, *, family: str = "clip", seed: int = 0) -> str:
    """A folder as a hub has it: the plain class's weights, its tokenizer, its image processor; no training.json."""
    torch.manual_seed(seed)
    tokenizer, sizes = _sizes(settings(family=family))
    sizes.cloc = None
    {"clip": CLIPModel, "siglip": SiglipModel}[family](sizes).save_pretrained(folder)
    body = json.loads((folder / "config.json").read_text())
    body.pop("cloc")
    (folder / "config.json").write_text(json.dumps(body))
    tokenizer.save_pretrained(folder)
    processor = CLIPImageProcessorPil if family == "clip" else SiglipImageProcessorPil
    processor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)
