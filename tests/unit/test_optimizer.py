"""Which parameter is optimised how, and what a run that goes on takes back."""

import pytest
import torch

from cloc.config.schema import LossConfig, ModelConfig, PrompterConfig, TextConfig, TrainConfig, VisionConfig
from cloc.model.configuration import from_settings
from cloc.model.factory import AnyCLOCModel
from cloc.model.modeling import CLOCModel, CLOCSiglipModel
from cloc.model.optimizers import Optimizers
from cloc.training.optimizer import make_optimizers
from cloc.training.task import CLOCTask, Objective


def task(family: str = "clip", objective: Objective = "cloc") -> CLOCTask:
    torch.manual_seed(0)
    config = ModelConfig(
        family=family,
        embed_dim=16,
        vision=VisionConfig(image_size=16, patch_size=8, width=16, layers=1, heads=2),
        text=TextConfig(width=16, layers=1, heads=2, context_length=8),
        prompter=PrompterConfig(spatial_bias="box"),
    )
    settings = from_settings(config, vocab_size=40, bos=0, eos=1, pad=1)
    model: AnyCLOCModel = (CLOCModel if family == "clip" else CLOCSiglipModel)(settings)
    return CLOCTask(model, LossConfig(), objective=objective)


def step(module: CLOCTask, optimizers: Optimizers, *, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)
    optimizers.step(1e-2)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("objective", ["clip", "cloc"])
def test_every_trained_parameter_moves_and_no_other(optimizer: str, family: str, objective: Objective) -> None:
    module = task(family, objective)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    step(module, make_optimizers(module, TrainConfig(optimizer=optimizer)), seed=0)
    for name, p in module.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name
        assert p.grad is None, name


def test_muon_takes_linear_weights_and_leaves_the_rest_to_adamw() -> None:
    """AdamW's first step moves every entry by the learning rate; Muon's is orthogonal, scaled to the same size."""
    module = task()
    before = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
    step(module, make_optimizers(module, TrainConfig(optimizer="muon", weight_decay=0.0, text_rate=0.5)), seed=0)
    moved = {name: p.detach() - before[name] for name, p in module.named_parameters() if name in before}
    for name in ("model.vision_model.encoder.layers.0.mlp.fc1.weight", "model.prompter.layers.0.query.weight"):
        singular = torch.linalg.svdvals(moved[name]) / (1e-2 * 0.2 * max(moved[name].shape) ** 0.5)
        assert ((singular > 0.5) & (singular < 1.5)).all(), name
    for name in (
        "model.vision_model.embeddings.position_embedding.weight",
        "model.box_head.2.weight",
        "model.prompter.corner_type",
        "model.region_logit_scale",
    ):
        torch.testing.assert_close(moved[name].abs(), torch.full_like(moved[name], 1e-2), rtol=1e-3, atol=0)
    text = moved["model.text_model.embeddings.token_embedding.weight"]
    torch.testing.assert_close(text.abs(), torch.full_like(text, 5e-3), rtol=1e-3, atol=0)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_state_taken_back_goes_on_equally(optimizer: str) -> None:
    whole, resumed = task(), task()
    train = TrainConfig(optimizer=optimizer)
    first, second = make_optimizers(whole, train), make_optimizers(resumed, train)
    step(whole, first, seed=0)
    resumed.load_state_dict(whole.state_dict())
    second.prepare()
    theirs, own = (
        each.tensors({id(p): name for name, p in module.named_parameters()})
        for each, module in ((first, whole), (second, resumed))
    )
    assert theirs.keys() == own.keys()
    for name, value in theirs.items():
        own[name].copy_(value)
    for module, optimizers in ((whole, first), (resumed, second)):
        step(module, optimizers, seed=1)
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name
