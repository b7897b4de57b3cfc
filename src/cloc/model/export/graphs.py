"""The graphs that a model is exported as: what each computes, its shapes, and inputs to try it on.

Free axes have names: `batch` images, `prompts` an image, `texts`, `length` tokens a text.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cloc.model.factory import AnyCLOCModel

Shapes = Mapping[str, tuple[int | str, ...]]


@dataclass(frozen=True)
class Sizes:
    """Values of the free axes."""

    batch: int
    prompts: int
    texts: int
    length: int


@dataclass(frozen=True)
class Graph:
    """One graph: what it computes, and the shapes of what goes in and out.

    Attributes:
        name: of its file, without suffix.
        compute: the tensors in `inputs`, in order -> those in `outputs`.
        inputs, outputs: name -> shape; a string is a free axis.
    """

    name: str
    compute: Callable[..., tuple[Tensor, ...]]
    inputs: Shapes
    outputs: Shapes


@dataclass(frozen=True)
class GraphCheck:
    """A graph that was written.

    Attributes:
        graph: what it is.
        difference: largest absolute difference to the model's outputs in onnxruntime.
    """

    graph: Graph
    difference: float


def graphs(model: AnyCLOCModel) -> Iterator[Graph]:
    """The graphs that a model has."""
    vision, embed = model.config.vision_config, model.embed_dim
    size, tokens = vision.image_size, ("batch", model.prefix_tokens + model.grid**2, vision.hidden_size)
    # SigLIP takes texts of the full length only.
    length = model.config.text_config.max_position_embeddings if model.config.model_type == "siglip" else "length"
    image_inputs, image_outputs = {"pixel_values": ("batch", 3, size, size)}, {"image_embeds": ("batch", embed)}
    region_outputs = {"region_embeds": ("batch", "prompts", embed)}
    yield Graph("image", _image, image_inputs, image_outputs | {"tokens": tokens})
    yield Graph("text", _text, {"input_ids": ("texts", length)}, {"text_embeds": ("texts", embed)})
    yield Graph("regions", _regions, {"tokens": tokens, "boxes": ("batch", "prompts", 4)}, region_outputs)
    if model.has_prompter and model.config.cloc["points"]:
        yield Graph("points", _points, {"tokens": tokens, "points": ("batch", "prompts", 2)}, region_outputs)
    if model.has_prompter:
        texts = {"tokens": tokens, "text_embeds": ("batch", "prompts", embed)}
        yield Graph("ground", _ground, texts, {"boxes": ("batch", "prompts", 4)})


def _image(model: AnyCLOCModel, pixel_values: Tensor) -> tuple[Tensor, ...]:
    encoded = model.encode_image(pixel_values)
    return encoded.embeds_BE, encoded.tokens_BND


def _text(model: AnyCLOCModel, input_ids: Tensor) -> tuple[Tensor, ...]:
    return (model.encode_text(input_ids),)


def _regions(model: AnyCLOCModel, tokens: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
    return (model.embed_boxes(tokens, boxes),)


def _points(model: AnyCLOCModel, tokens: Tensor, points: Tensor) -> tuple[Tensor, ...]:
    return (model.embed_points(tokens, points),)


def _ground(model: AnyCLOCModel, tokens: Tensor, text_embeds: Tensor) -> tuple[Tensor, ...]:
    return (model.ground_texts(tokens, text_embeds),)


def example(graph: Graph, model: AnyCLOCModel, sizes: Sizes) -> tuple[Tensor, ...]:
    """Inputs of a graph: random, equal in every run, tokens as the encoder makes them."""
    random, text = torch.Generator().manual_seed(0), model.config.text_config
    size, longest = model.config.vision_config.image_size, text.max_position_embeddings

    def make(name: str) -> Tensor:
        if name == "pixel_values":
            return torch.randn(sizes.batch, 3, size, size, generator=random)
        if name == "tokens":
            with torch.no_grad():
                return model.encode_image(make("pixel_values")).tokens_BND
        if name == "input_ids":
            length = longest if model.config.model_type == "siglip" else min(longest, sizes.length)
            ids = torch.randint(text.vocab_size, (sizes.texts, length), generator=random)
            ids[:, -1] = text.eos_token_id
            return ids
        if name == "text_embeds":
            return torch.randn(sizes.batch, sizes.prompts, model.embed_dim, generator=random)
        if name == "points":
            return torch.rand(sizes.batch, sizes.prompts, 2, generator=random)
        corners = torch.rand(sizes.batch, sizes.prompts, 2, 2, generator=random) * 0.9
        low, high = corners.amin(dim=2), corners.amax(dim=2)
        return torch.cat([low, high + 0.1], dim=-1)

    return tuple(make(name) for name in graph.inputs)
