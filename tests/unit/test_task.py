"""The objective: under every variant each trained parameter gets a gradient (DDP waits for all of them)."""

import pytest
import torch

from cloc.config.schema import LossConfig, ModelConfig, PrompterConfig, TextConfig, VisionConfig
from cloc.data.batches import Batch
from cloc.model.configuration import from_settings
from cloc.model.modeling import CLOCModel, CLOCSiglipModel
from cloc.training.task import CLOCTask, Objective

VARIANTS = {
    "paper": ({}, {}),
    "box": ({"spatial_bias": "box"}, {}),
    "points": ({"spatial_bias": "box", "pool": "prompt"}, {"point_share": 0.5}),
    "image pool": ({"spatial_bias": "box", "pool": "image"}, {}),
    "image pool, two layers": ({"spatial_bias": "box", "pool": "image", "layers": 2, "heads": 2}, {}),
    "prompt pool, two layers": ({"pool": "prompt", "layers": 2}, {}),
    "no grounding": ({"spatial_bias": "box"}, {"grounding": "none"}),
    "RoIAlign": ({"kind": "roi_align"}, {}),
    "shared temperature": ({}, {"temperature": "shared"}),
    "sigmoid": ({}, {"image": "sigmoid", "region": "sigmoid"}),
    "sigmoid, shared": ({}, {"region": "sigmoid", "temperature": "shared"}),
}


def batch() -> Batch:
    torch.manual_seed(1)
    corners = torch.rand(4, 2, 2) * 0.5
    present = torch.tensor([[True, True], [True, False], [False, False], [True, True]])
    return Batch(
        keys=("a", "b", "c", "d"),
        pixels_BSS3=torch.randint(0, 255, (4, 16, 16, 3), dtype=torch.uint8),
        caption_ids_BL=torch.cat([torch.randint(2, 40, (4, 7)), torch.ones(4, 1, dtype=torch.long)], dim=1),
        boxes_BM4=torch.cat([corners, corners + 0.3], dim=-1) * present[..., None],
        points_BM2=(corners + 0.1) * present[..., None],
        pointed_BM=torch.tensor([[True, False], [False, False], [False, False], [False, True]]),
        present_BM=present,
        text_ids_UL=torch.cat([torch.randint(2, 40, (5, 7)), torch.ones(5, 1, dtype=torch.long)], dim=1),
        text_index_BM=torch.randint(0, 5, (4, 2)),
    )


def make(variant: str, *, family: str = "clip", objective: Objective = "cloc") -> CLOCTask:
    prompter, loss = VARIANTS[variant]
    torch.manual_seed(0)
    config = ModelConfig(
        family=family,
        embed_dim=16,
        vision=VisionConfig(image_size=16, patch_size=4, width=16, layers=1, heads=2),
        text=TextConfig(width=16, layers=1, heads=2, context_length=8),
        prompter=PrompterConfig(**prompter),
    )
    settings = from_settings(config, vocab_size=40, bos=0, eos=1, pad=1)
    settings.cloc["points"] = True
    model = (CLOCModel if family == "clip" else CLOCSiglipModel)(settings)
    return CLOCTask(model, LossConfig(max_regions=2, **loss), objective=objective)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("objective", ["cloc", "clip"])
def test_every_trained_parameter_gets_a_gradient(variant: str, family: str, objective: Objective) -> None:
    task = make(variant, family=family, objective=objective)
    losses = task(batch())
    assert torch.isfinite(losses.total)
    losses.total.backward()
    without = [name for name, p in task.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_shared_temperature_is_the_regions_as_well(family: str) -> None:
    shared, own = make("shared temperature", family=family), make("paper", family=family)
    for task in (shared, own):
        with torch.no_grad():
            task.model.logit_scale.fill_(9.0)
            task.model.region_logit_scale.fill_(1.0)
        task.clamp_scales()
        assert task.model.logit_scale.exp().item() == pytest.approx(100, rel=1e-4)
    assert shared.model.region_logit_scale.exp().item() == pytest.approx(100, rel=1e-4)
    assert own.model.region_logit_scale.item() == 1.0
