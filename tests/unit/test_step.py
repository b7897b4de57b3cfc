"""Steps: a batch in parts has the losses and gradients of the whole one, and little memory; frozen towers; sizes."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from cloc.config.schema import ResolutionConfig, TrainConfig
from cloc.errors import ConfigError
from cloc.training.distributed import Rank
from cloc.training.ema import Average
from cloc.training.optimizer import layer_rates, make_optimizers
from cloc.training.parallel import full_state, parallel
from cloc.training.schedule import Phase, phases
from cloc.training.step import Stepper
from cloc.training.task import CLOCTask, Losses
from tests.unit.test_task import VARIANTS, batch, make

ALONE = Rank(0, 1, torch.device("cpu"))


def stepper(task: CLOCTask, **train: Any) -> Stepper:
    settings = TrainConfig(**{"precision": "float32", "batch_size": 4, **train})
    module = parallel(task, settings, ALONE)
    return Stepper(module, task, make_optimizers(task, settings), train=settings, rank=ALONE)


def gradients(task: CLOCTask) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


def step(task: CLOCTask, **train: Any) -> tuple[Losses, dict[str, Tensor]]:
    """Losses and gradients of a batch."""
    losses = stepper(task, **train).backward(batch())
    return losses, gradients(task)


def same(found: tuple[Losses, dict[str, Tensor]], expected: tuple[Losses, dict[str, Tensor]], *, within: float) -> None:
    """Losses equal, and each gradient to a share of its largest entry; those that are rounding alone are left out."""
    for name, value in vars(expected[0]).items():
        torch.testing.assert_close(getattr(found[0], name), value, rtol=within, atol=0, msg=lambda t, at=name: at + t)
    assert found[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        allowed = within * float(value.abs().max()) + 1e-12
        torch.testing.assert_close(found[1][name], value, rtol=0, atol=allowed, msg=lambda t, at=name: f"{at}: {t}")


@pytest.mark.parametrize("objective", ["cloc", "clip"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_have_the_losses_and_gradients_of_the_whole_batch(variant: str, objective: Any) -> None:
    """In float64, for every variant of the objective: of all parameters, temperatures and biases too."""
    family = "siglip" if variant in ("sigmoid", "points") else "clip"
    expected = step(make(variant, family=family, objective=objective).double())
    for size in (1, 3):
        found = step(make(variant, family=family, objective=objective).double(), micro_batch=size)
        same(found, expected, within=1e-6)


def test_parts_train_in_bfloat16_too() -> None:
    """Weights that autocast has cast without gradient in the first pass are not those of the second."""
    expected = step(make("points"), precision="bfloat16")
    found = step(make("points"), precision="bfloat16", micro_batch=1)
    exact = step(make("points"))
    for name, value in expected[1].items():
        error = (found[1][name] - value).norm()
        rounding = (value - exact[1][name]).norm()  # what bfloat16 itself does to this gradient
        assert error <= 2 * rounding + 1e-4 * value.norm() + 1e-7, name
        assert found[1][name].abs().sum() > 0 or value.abs().sum() == 0, name


def test_a_batch_that_is_one_part_is_embedded_once() -> None:
    task, calls = make("paper"), list[int]()
    task.model.vision_model.register_forward_hook(lambda *_: calls.append(1))
    for size, expected in ((0, 1), (4, 1), (9, 1), (2, 4)):
        calls.clear()
        step(task, micro_batch=size)
        assert len(calls) == expected


@contextmanager
def kept_bytes(task: nn.Module) -> Iterator[dict[str, int]]:
    """The most bytes that autograd held at once for backward, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in task.parameters()}
    held, count = dict[int, int](), {"peak": 0}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and storage._cdata not in held:
            held[storage._cdata] = storage.nbytes()
            copy = tensor.detach()
            weakref.finalize(copy, held.pop, storage._cdata, None)
            count["peak"] = max(count["peak"], sum(held.values()))
            return copy
        return tensor.detach()

    gc.collect()
    with saved_tensors_hooks(pack, lambda packed: packed):
        yield count


def peak(images: int, **train: Any) -> int:
    task = make("points")
    whole = batch()
    part = {name: value for name, value in whole.tensors().items() if name != "text_ids_UL"}
    many = replace(
        whole,
        keys=tuple(str(number) for number in range(images)),
        **{name: torch.cat([value] * (images // 4)) for name, value in part.items()},
    )
    made = stepper(task, **train)
    with kept_bytes(task) as count:
        made.backward(many)
    return count["peak"]


def test_memory_of_parts_does_not_grow_with_their_number() -> None:
    """Activations kept for backward, at most at once: those of a part, however many parts there are."""
    whole, two, sixteen = peak(32), peak(8, micro_batch=4), peak(64, micro_batch=4)
    assert whole > 4 * two
    assert sixteen < 1.3 * two  # the embeddings of the batch


@pytest.mark.parametrize("variant", ["paper", "points"])
def test_checkpointing_changes_nothing_but_memory(variant: str) -> None:
    """The paper's Prompter keeps image tokens for each prompt: it is computed again as well."""
    expected = step(make(variant))
    found = step(make(variant), gradient_checkpointing=True)
    same(found, expected, within=0)
    sizes = []
    for checkpointing in (False, True):
        task = make(variant)
        made = stepper(task, gradient_checkpointing=checkpointing)
        with kept_bytes(task) as count:
            made.backward(batch())
        sizes.append(count["peak"])
    assert sizes[1] < 0.7 * sizes[0]


@pytest.mark.parametrize("options", [{}, {"micro_batch": 3}, {"gradient_checkpointing": True}, {"lock": "text"}])
def test_the_same_steps_twice_are_bitwise_equal(options: dict[str, Any]) -> None:
    """Losses, norms and weights; in bfloat16, as on a processor that is fast in it."""
    runs = []
    for _ in range(2):
        task = locked(options.get("lock", "none"))
        made, values = stepper(task, **{"precision": "bfloat16", **options}), list[Tensor]()
        for _ in range(3):
            values += [made.backward(batch()).total.detach(), made.clip()]
            made.apply(1e-3)
        runs.append(values + list(full_state(task.model).values()))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def locked(lock: Any, variant: str = "points") -> CLOCTask:
    task = make(variant)
    return CLOCTask(task.model, task.config, objective=task.objective, lock=lock)


@pytest.mark.parametrize("lock", ["image", "text"])
@pytest.mark.parametrize("size", [0, 3])
def test_a_locked_tower_has_no_gradient_and_the_others_have_theirs(lock: str, size: int) -> None:
    expected = step(make("points").double())
    found = step(locked(lock).double(), micro_batch=size)
    tower = {"image": ("model.vision_model", "model.visual_p"), "text": ("model.text_model", "model.text_projection")}
    left = {name: value for name, value in expected[1].items() if not name.startswith(tower[lock])}
    assert len(left) < len(expected[1])
    assert any(name.startswith("model.prompter") for name in left)
    same(found, (expected[0], left), within=1e-6)


def test_a_locked_tower_keeps_no_activations() -> None:
    sizes = {}
    for lock in ("none", "image"):
        task = locked(lock, "RoIAlign")
        made = stepper(task)
        with kept_bytes(task) as count:
            made.backward(batch())
        sizes[lock] = count["peak"]
    assert sizes["image"] < 0.7 * sizes["none"]


def test_the_norm_is_a_plain_scalar_and_gradients_are_no_longer_than_allowed() -> None:
    task = make("paper")
    made = stepper(task, grad_clip=0.25)
    made.backward(batch())
    expected = torch.cat([gradient.flatten() for gradient in gradients(task).values()]).norm()
    norm = made.clip()
    assert type(norm) is Tensor
    assert norm.shape == ()
    torch.testing.assert_close(norm, expected)
    clipped = torch.cat([gradient.flatten() for gradient in gradients(task).values()]).norm()
    torch.testing.assert_close(clipped, torch.tensor(0.25), rtol=1e-4, atol=0)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_deeper_layers_learn_more_slowly(family: str) -> None:
    rates = layer_rates(make("box", family=family).model, decay=0.5)  # towers of one layer
    assert {rate for name, rate in rates.items() if ".embeddings." in name} == {0.25}
    assert {rate for name, rate in rates.items() if ".encoder.layers.0." in name} == {0.5}
    above = [name for name in rates if "embeddings." not in name and ".encoder." not in name and "pre_layr" not in name]
    assert {rates[name] for name in above} == {1.0}
    assert {"logit_scale", "prompter.inside.weight", "vision_model.post_layernorm.weight"} <= set(above)


def test_a_step_moves_each_layer_at_its_rate() -> None:
    """AdamW's first step moves every entry by the learning rate."""
    task = make("paper")
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    made = stepper(task, layer_decay=0.5, weight_decay=0.0, text_rate=0.1)
    for parameter in task.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    made.apply(1e-2)
    moved = {name: float((p.detach() - before[name]).abs().max()) for name, p in task.model.named_parameters()}
    assert moved["vision_model.embeddings.position_embedding.weight"] == pytest.approx(2.5e-3, rel=1e-2)
    assert moved["vision_model.encoder.layers.0.mlp.fc1.weight"] == pytest.approx(5e-3, rel=1e-2)
    assert moved["text_model.encoder.layers.0.mlp.fc1.weight"] == pytest.approx(5e-4, rel=1e-2)
    assert moved["prompter.layers.0.query.weight"] == pytest.approx(1e-2, rel=1e-2)


def test_the_average_is_that_of_the_weights_and_leaves_locked_ones_out() -> None:
    task = locked("image")
    average = Average(task, decay=0.5)
    name = "model.prompter.corner_type"
    weight = dict(task.named_parameters())[name]
    expected = weight.detach().clone()
    assert not any(key.startswith("model.vision_model") for key in average.tensors())
    for number in range(10):
        with torch.no_grad():
            weight.normal_()
        average.update(number)
        decay = min(0.5, (2 + number) / (11 + number))
        expected = decay * expected + (1 - decay) * weight.detach()
    torch.testing.assert_close(average.tensors()[name], expected)
    now = weight.detach().clone()
    with average.in_place():
        state = full_state(task.model)
    torch.testing.assert_close(state["prompter.corner_type"], expected)  # kept though the weights are back
    assert torch.equal(weight, now)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_smaller_input_has_interpolated_positions(family: str) -> None:
    """As a model of that size whose positions are those of the larger one, resized."""
    model = make("points", family=family).model.eval()  # 4 x 4 patches of 4 pixels
    small = make("points", family=family).model.eval()
    positions = model.vision_model.embeddings.position_embedding.weight.detach()
    prefix = model.prefix_tokens
    grid_1DGG = positions[prefix:].T.unflatten(1, (4, 4))[None]
    resized = F.interpolate(grid_1DGG, (2, 2), mode="bicubic", align_corners=False)[0].flatten(1).T
    embeddings = small.vision_model.embeddings
    embeddings.position_embedding = nn.Embedding.from_pretrained(torch.cat([positions[:prefix], resized]))
    embeddings.position_ids = torch.arange(4 + prefix)[None]
    embeddings.image_size = 8
    pixels = torch.randn(2, 3, 8, 8)
    expected, found = small.encode_image(pixels), model.encode_image(pixels, interpolate=True)
    torch.testing.assert_close(found.tokens_BND, expected.tokens_BND)
    torch.testing.assert_close(found.embeds_BE, expected.embeds_BE)
    with pytest.raises((ValueError, RuntimeError), match="match"):
        model.encode_image(pixels)
    with pytest.raises(ValueError, match="expected the shape"):
        model.get_region_features(pixels, torch.tensor([[[0.1, 0.1, 0.5, 0.5]]]))


@pytest.mark.parametrize("variant", ["paper", "points", "RoIAlign"])
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_smaller_input_trains_every_parameter(variant: str, family: str) -> None:
    small = replace(batch(), pixels_BSS3=batch().pixels_BSS3[:, :8, :8])
    task = make(variant, family=family)
    assert torch.isfinite(stepper(task).backward(small).total)
    assert {name for name, p in task.named_parameters() if p.requires_grad} == set(gradients(task))


def test_regions_are_the_same_part_of_a_smaller_input() -> None:
    """The left half of a 2 x 2 grid is covered as that of a 4 x 4 grid is; a point means the same box."""
    prompter = make("points").model.prompter
    left = torch.tensor([[[0.0, 0.0, 0.5, 1.0]]])
    for grid in (2, 4):
        tokens_BND = torch.randn(1, grid * grid + 1, 16)
        memory = prompter.prepare(tokens_BND)
        inside = tokens_BND[:, 1:].unflatten(1, (grid, grid))[:, :, : grid // 2].flatten(1, 2).mean(dim=1)
        torch.testing.assert_close(prompter.pooled(memory, left)[:, 0], prompter.token_projection(inside))


def test_phases_name_a_size_that_the_model_cannot_take() -> None:
    def part(size: int, share: float = 0.25) -> ResolutionConfig:
        return ResolutionConfig(share=share, image_size=size)

    found = phases([part(16), part(24, 0.5)], steps=8, image_size=32, patch_size=8)
    assert found == [Phase(0, 2, 16), Phase(2, 6, 24), Phase(6, 8, 32)]
    with pytest.raises(ConfigError, match=r"resolutions\[1\].image_size 20 is not a multiple .* patch size 8; take 16"):
        phases([part(16), part(20)], steps=8, image_size=32, patch_size=8)
    with pytest.raises(ConfigError, match="image_size 32 is not smaller than the model's own 32"):
        phases([part(32)], steps=8, image_size=32, patch_size=8)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True, "micro_batch": 3}])
def test_compiled_layers_compute_the_same(options: dict[str, Any]) -> None:
    """Compiled by gcc here; as a whole, or it would be an error."""
    expected = step(make("points"), **options)
    torch._dynamo.reset()
    found = step(make("points"), compile=True, **options)
    for name, value in expected[1].items():
        allowed = 1e-3 * float(value.abs().max()) + 1e-6
        torch.testing.assert_close(found[1][name], value, rtol=0, atol=allowed, msg=lambda t, at=name: f"{at}: {t}")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2  # image and text
