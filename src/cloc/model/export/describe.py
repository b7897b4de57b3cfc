"""What goes beside ONNX graphs: onnx.json for programs, README.md for people."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cloc.data.transforms import PADDING
from cloc.model.export.graphs import GraphCheck, Shapes
from cloc.model.factory import AnyCLOCModel
from cloc.model.processing import CLOCProcessor

_PAGE = """# {name} as ONNX graphs

| graph | inputs | outputs | largest difference to the model |
|---|---|---|---|
{rows}

Float32, opset {opset}; token ids are int64. Named axes are free: `batch` images, `prompts` an image, `texts`, `length`
tokens a text (at most {longest}). An image is encoded once; its `tokens` go into the other graphs, with as many prompts
as wanted. Embeddings are not normalised. Boxes are xyxy and points (x, y), in [0, 1] of the padded square that the
network sees. `onnx.json` holds what the code below reads from it.

```python
import json

import numpy as np
import onnxruntime
from PIL import Image
from transformers import AutoTokenizer

facts = json.load(open("onnx.json"))
graphs = {{name: onnxruntime.InferenceSession(graph["file"]) for name, graph in facts["graphs"].items()}}


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# The image: long side to the network's size, top left on a square, normalised.
image, form = Image.open("photo.png").convert("RGB"), facts["images"]
share = form["size"] / max(image.size)
fitted = image.resize([max(1, round(side * share)) for side in image.size], Image.Resampling.BICUBIC)
square = Image.new("RGB", (form["size"], form["size"]), tuple(form["padding"]))
square.paste(fitted, (0, 0))
pixels = (np.asarray(square) / 255 - form["mean"]) / form["std"]
pixel_values = pixels.transpose(2, 0, 1)[None].astype(np.float32)
image_embeds, tokens = graphs["image"].run(None, {{"pixel_values": pixel_values}})

# Texts: lower-cased.
labels, form = ["a red apple", "a blue key"], facts["texts"]
coded = AutoTokenizer.from_pretrained(".")(
    [label.lower() for label in labels], padding=form["padding"], truncation=True, max_length=form["max_length"]
)
(text_embeds,) = graphs["text"].run(None, {{"input_ids": np.array(coded["input_ids"])}})

# A box of the image, in [0, 1], is one of the square; then each label's probability.
frame = np.array([*fitted.size, *fitted.size]) / facts["images"]["size"]
boxes = np.array([[[0.1, 0.2, 0.5, 0.9]]])
(region_embeds,) = graphs["regions"].run(None, {{"tokens": tokens, "boxes": (boxes * frame).astype(np.float32)}})
logits = facts["scales"]["region_logit_scale"] * unit(region_embeds) @ unit(text_embeds).T
scores = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
{ground}```
"""
_GROUND = """
# The box of each label, in [0, 1] of the image.
(found,) = graphs["ground"].run(None, {"tokens": tokens, "text_embeds": text_embeds[None]})
found = np.clip(found / frame, 0, 1)
"""


@dataclass(frozen=True)
class Description:
    """What is written beside the graphs.

    Attributes:
        facts: of onnx.json.
        page: README.md.
    """

    facts: dict[str, Any]
    page: str


def describe(model: AnyCLOCModel, processor: CLOCProcessor, checks: Sequence[GraphCheck], *, opset: int) -> Description:
    """Inputs, outputs, preprocessing and scales of exported graphs.

    Args:
        model: what was exported.
        processor: its processor.
        checks: the graphs.
        opset: of the graphs.
    """
    facts = {
        "opset": opset,
        "graphs": {
            check.graph.name: {
                "file": f"{check.graph.name}.onnx",
                "inputs": {name: list(shape) for name, shape in check.graph.inputs.items()},
                "outputs": {name: list(shape) for name, shape in check.graph.outputs.items()},
                "max_abs_difference": check.difference,
            }
            for check in checks
        },
        "images": {
            "size": processor.image_size,
            "padding": list(PADDING),
            "mean": list(processor.pixel_mean),
            "std": list(processor.pixel_std),
        },
        "texts": {
            "max_length": processor.context_length,
            "padding": "max_length" if processor.pad_to_full_length else "longest",
        },
        "scales": {
            "logit_scale": model.logit_scale.exp().item(),
            "logit_bias": model.logit_bias.item(),
            "region_logit_scale": model.region_logit_scale.exp().item(),
            "region_logit_bias": model.region_logit_bias.item(),
        },
    }
    page = _PAGE.format(
        name=type(model).__name__,
        rows="\n".join(_row(check) for check in checks),
        opset=opset,
        longest=processor.context_length,
        ground=_GROUND if model.has_prompter else "",
    )
    return Description(facts, page)


def _row(check: GraphCheck) -> str:
    graph = check.graph
    return f"| {graph.name}.onnx | {_tensors(graph.inputs)} | {_tensors(graph.outputs)} | {check.difference:.1e} |"


def _tensors(shapes: Shapes) -> str:
    return ", ".join(f"`{name}` ({', '.join(map(str, shape))})" for name, shape in shapes.items())
