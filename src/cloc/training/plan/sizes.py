"""What is trained: sizes of the architecture, and exact numbers of its parameters, on torch's device without memory."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn

from cloc.config import Config
from cloc.config.schema import ModelConfig, TextConfig, VisionConfig
from cloc.model import factory
from cloc.model.optimizers import matrices
from cloc.training.task import CLOCTask, Objective

# Public checkpoints by the sizes in their config.json.
_L14 = (VisionConfig(width=1024, layers=24, heads=16, patch_size=14), TextConfig(width=768, heads=12), 768)
_PUBLIC: Mapping[str, tuple[VisionConfig, TextConfig, int]] = {
    "openai/clip-vit-base-patch32": (VisionConfig(patch_size=32), TextConfig(), 512),
    "openai/clip-vit-base-patch16": (VisionConfig(), TextConfig(), 512),
    "openai/clip-vit-large-patch14": _L14,
    "openai/clip-vit-large-patch14-336": (_L14[0].model_copy(update={"image_size": 336}), *_L14[1:]),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": (
        VisionConfig(width=1280, layers=32, heads=16, patch_size=14),
        TextConfig(width=1024, layers=24, heads=16),
        1024,
    ),
}


@dataclass(frozen=True)
class Tower:
    """Sizes of a transformer.

    Attributes:
        width, layers, heads: of it.
        mlp: width of the MLP.
        tokens: of a sequence (the longest text; the patches, with [CLS]).
        parameters: of the widest layer.
    """

    width: int
    layers: int
    heads: int
    mlp: int
    tokens: int
    parameters: int


@dataclass(frozen=True)
class Sizes:
    """What is trained.

    Attributes:
        vision, text: the towers.
        family: "clip" or "siglip".
        patch_size, image_size: pixels.
        embed_dim: width of the shared space.
        activation: name of the MLPs' non-linearity.
        clip: parameters of the plain CLIP (or SigLIP) inside.
        parameters: of the whole model.
        trained: those with a gradient.
        muon: of these, those that are Muon's.
        linear: weights that bfloat16 keeps a copy of.
        tensors: number of parameter tensors.
    """

    vision: Tower
    text: Tower
    family: str
    patch_size: int
    image_size: int
    embed_dim: int
    activation: str
    clip: int
    parameters: int
    trained: int
    muon: int
    linear: int
    tensors: int

    @property
    def outside(self) -> int:
        """Parameters outside the towers' layers."""
        return self.parameters - sum(tower.layers * tower.parameters for tower in (self.vision, self.text))


def known_checkpoint(config: Config) -> tuple[Config, str]:
    """The settings with a well-known checkpoint to start from replaced by its sizes where it is not on this machine,
    and a remark on that: a plan needs no weights."""
    name = config.model.init_from
    if not name or name not in _PUBLIC or try_to_load_from_cache(name, "config.json"):
        return config, ""
    vision, text, width = _PUBLIC[name]
    if config.model.init_image_size:
        vision = vision.model_copy(update={"image_size": config.model.init_image_size})
    model = ModelConfig(embed_dim=width, vision=vision, text=text, prompter=config.model.prompter)
    return config.model_copy(update={"model": model}), f"{name} is not on this machine: its published sizes are taken"


def sizes(config: Config, *, objective: Objective) -> Sizes:
    """Counts the model of these settings; nothing is allocated.

    Raises:
        ConfigError: the checkpoint that it starts from cannot be read.
    """
    shape = factory.architecture(config.model)
    with torch.device("meta"):
        model = factory.from_architecture(shape)
    task = CLOCTask(model, config.loss, objective=objective, lock=config.train.lock)
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    own = matrices(task) if config.train.optimizer == "muon" else set[int]()
    vision, text = shape.vision_config, shape.text_config
    grid = vision.image_size // vision.patch_size
    plain = (name for name in model.state_dict() if not name.startswith(("prompter.", "region_", "box_head.")))
    added = () if shape.model_type == "siglip" else ("logit_bias",)
    return Sizes(
        vision=_tower(vision, model.vision_model, grid * grid + model.prefix_tokens),
        text=_tower(text, model.text_model, text.max_position_embeddings),
        family=shape.model_type,
        patch_size=vision.patch_size,
        image_size=vision.image_size,
        embed_dim=model.embed_dim,
        activation=vision.hidden_act,
        clip=sum(model.state_dict()[name].numel() for name in plain if name not in added),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trained=sum(parameter.numel() for parameter in trained),
        muon=sum(parameter.numel() for parameter in trained if id(parameter) in own),
        linear=sum(part.weight.numel() for part in model.modules() if isinstance(part, (nn.Linear, nn.Conv2d))),
        tensors=len(list(model.parameters())),
    )


def _tower(shape: object, module: nn.Module, tokens: int) -> Tower:
    read = vars(shape)
    layers = [part for name, part in module.named_modules() if name.rpartition(".")[0].endswith("layers")]
    return Tower(
        width=read["hidden_size"],
        layers=read["num_hidden_layers"],
        heads=read["num_attention_heads"],
        mlp=read["intermediate_size"],
        tokens=tokens,
        parameters=max(sum(parameter.numel() for parameter in layer.parameters()) for layer in layers),
    )
