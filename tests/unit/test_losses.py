"""Losses against plain float64 references: value and gradient, whatever the tile."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cloc.model import losses
from cloc.model.losses import contrastive

KINDS = ("infonce", "sigmoid")


def unit(rows: int, width: int, *, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=-1)


def scalar(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(value, dtype=dtype, requires_grad=True)


def naive(
    a: Tensor, b: Tensor, scale: Tensor, bias: Tensor | None, valid: list[bool], threshold: float
) -> tuple[Tensor, int]:
    """METHOD's definition with loops, and the number of dropped pairs; with a bias the sigmoid loss."""
    rows = [row for row, is_valid in enumerate(valid) if is_valid]
    total, dropped = 0 * (a.sum() + b.sum() + scale + (0 if bias is None else bias)), 0
    for i in rows:
        near = [j for j in rows if j != i and (threshold >= 1 or (b[i] @ b[j]).item() <= threshold)]
        dropped += len(rows) - 1 - len(near)
        positive = scale * (a[i] @ b[i])
        if bias is None:
            to_b = torch.stack([positive, *(scale * (a[i] @ b[j]) for j in near)])
            to_a = torch.stack([positive, *(scale * (b[i] @ a[j]) for j in near)])
            total = total + (to_b.logsumexp(0) + to_a.logsumexp(0)) / 2 - positive
        else:
            total = total - F.logsigmoid(positive + bias)
            total = total - sum(F.logsigmoid(-(scale * (a[i] @ b[j]) + bias)) for j in near)
    return total / max(len(rows), 1), dropped


def arguments(kind: str, *, scale: float = 7.0) -> dict[str, Tensor]:
    """Scale, and what the kind needs beside it, as leaves."""
    return {"scale": scalar(scale)} | ({"bias": scalar(-3.0)} if kind == "sigmoid" else {})


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 11),
    width=st.integers(1, 6),
    seed=st.integers(0, 1000),
    copies=st.integers(0, 11),
    threshold=st.sampled_from([0.3, 0.9, 1.0]),
    tile=st.sampled_from([1, 2, 3, 4, 64]),
    kind=st.sampled_from(KINDS),
    data=st.data(),
)
def test_value_and_gradients_equal_the_definition(
    rows: int, width: int, seed: int, copies: int, threshold: float, tile: int, kind: str, data
) -> None:
    valid = data.draw(st.one_of(st.none(), st.lists(st.booleans(), min_size=rows, max_size=rows)))
    a, b = unit(rows, width, seed=seed), unit(rows, width, seed=seed + 1)
    b[:copies] = b[0].clone()
    ours, reference = (
        {"a_KE": a.clone().requires_grad_(), "b_KE": b.clone().requires_grad_()} | arguments(kind) for _ in range(2)
    )
    found = contrastive(
        **ours,
        kind=kind,
        valid_K=None if valid is None else torch.tensor(valid),
        similar_text_threshold=threshold,
        tile=tile,
    )
    everyone = [True] * rows if valid is None else valid
    expected, dropped = naive(
        reference["a_KE"], reference["b_KE"], reference["scale"], reference.get("bias"), everyone, threshold
    )
    (found.loss * 1.5).backward()
    (expected * 1.5).backward()
    torch.testing.assert_close(found.loss, expected)
    assert found.dropped_pairs.item() == dropped
    assert found.valid_rows.item() == sum(everyone)
    for name, leaf in ours.items():
        torch.testing.assert_close(leaf.grad, reference[name].grad, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", [3, 64])
@pytest.mark.parametrize(
    ("valid", "threshold"),
    [(None, 1.0), (None, 0.6), ([True, False, True, True, True, False, True], 0.6)],
    ids=["plain", "filter", "filter and mask"],
)
def test_gradcheck(kind: str, tile: int, valid: list[bool] | None, threshold: float) -> None:
    a, b = unit(7, 3, seed=0).requires_grad_(), unit(7, 3, seed=5)
    b[4] = b[0].clone()
    scalars = list(arguments(kind).values())
    assert torch.autograd.gradcheck(
        lambda a, b, scale, *bias: (
            contrastive(
                a,
                b,
                scale=scale,
                bias=bias[0] if bias else None,
                kind=kind,
                valid_K=None if valid is None else torch.tensor(valid),
                similar_text_threshold=threshold,
                tile=tile,
            ).loss
        ),
        [a, b.requires_grad_(), *scalars],
    )


def test_images_equal_cross_entropy() -> None:
    a, b = unit(6, 4, seed=0), unit(6, 4, seed=1)
    logits, target = 5 * a @ b.T, torch.arange(6)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(contrastive(a, b, scale=torch.tensor(5.0)).loss, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", [2, 64])
def test_no_region_gives_zero_and_gradients_of_zero(kind: str, tile: int) -> None:
    leaves = {"a_KE": unit(5, 3, seed=0).requires_grad_(), "b_KE": unit(5, 3, seed=1).requires_grad_()}
    leaves |= arguments(kind)
    nobody = torch.zeros(5, dtype=torch.bool)
    found = contrastive(**leaves, kind=kind, valid_K=nobody, similar_text_threshold=0.9, tile=tile)
    found.loss.backward()
    assert found.loss.item() == 0
    assert found.dropped_share.item() == 0
    for leaf in leaves.values():
        assert leaf.grad is not None
        assert leaf.grad.abs().sum() == 0


@pytest.mark.parametrize("tile", [2, 64])
@pytest.mark.parametrize("regions", [1, 2, 4])
def test_absent_regions_count_for_nothing(regions: int, tile: int) -> None:
    """Images with 1, some or all M = 4 regions: as if the absent places were not there, whatever they hold."""
    a, b = unit(12, 3, seed=2).requires_grad_(), unit(12, 3, seed=3).requires_grad_()
    valid = (torch.arange(4) < regions).repeat(3)
    with torch.no_grad():
        a[~valid], b[~valid] = float("nan"), float("inf")
    scale = scalar(8.0)
    found = contrastive(a, b, scale=scale, valid_K=valid, similar_text_threshold=0.9, tile=tile)
    alone = contrastive(a[valid], b[valid], scale=scale, similar_text_threshold=0.9, tile=tile)
    torch.testing.assert_close(found.loss, alone.loss)
    grads = torch.autograd.grad(found.loss, [a, b, scale])
    for grad, expected in zip(grads, torch.autograd.grad(alone.loss, [a, b, scale]), strict=True):
        torch.testing.assert_close(grad, expected)
    assert grads[0][~valid].abs().sum() == grads[1][~valid].abs().sum() == 0


@pytest.mark.parametrize("tile", [2, 64])
def test_equal_texts_leave_no_negatives(tile: int) -> None:
    texts = unit(1, 4, seed=0).expand(5, 4)
    found = contrastive(unit(5, 4, seed=1), texts, scale=torch.tensor(10.0), similar_text_threshold=0.9, tile=tile)
    assert found.loss.item() == pytest.approx(0.0, abs=1e-12)
    assert found.dropped_share.item() == 1
    assert found.dropped_pairs.item() == 20


def test_filter_counts_ordered_pairs() -> None:
    texts = torch.eye(4, dtype=torch.float64)
    texts[1] = texts[0]
    texts[2, 0], texts[2, 2] = 0.9, math.sqrt(1 - 0.9**2)  # cosine 0.9 with texts 0 and 1
    for threshold, dropped in ((0.91, 2), (0.89, 6), (1.0, 0)):
        found = contrastive(texts, texts, scale=torch.tensor(1.0), similar_text_threshold=threshold)
        assert found.dropped_pairs.item() == dropped
        assert found.dropped_share.item() == pytest.approx(dropped / 12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", [3, 64])
def test_equal_rows_at_the_largest_scale_are_finite(dtype: torch.dtype, kind: str, tile: int) -> None:
    same = torch.full((8, 16), 0.25, dtype=dtype)
    a, b, scale = same.clone().requires_grad_(), same.clone().requires_grad_(), scalar(100.0, torch.float32)
    bias = scalar(-10.0, torch.float32) if kind == "sigmoid" else None
    found = contrastive(a, b, scale=scale, bias=bias, kind=kind, tile=tile)
    found.loss.backward()
    assert found.loss.dtype == torch.float32
    # 7 negatives a row at logit 100 - 10, or 8 equal logits.
    assert found.loss.item() == pytest.approx(7 * 90 if kind == "sigmoid" else math.log(8), abs=1e-4)
    for leaf in (a, b, scale):
        assert leaf.grad is not None
        assert leaf.grad.dtype == leaf.dtype
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("opposite", [False, True])
def test_far_logits_neither_overflow_nor_vanish(opposite: bool) -> None:
    """Cosines of 1 and -1 at scale 100 lie 200 apart: exp of either end alone would leave float32."""
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None]
    a = (F.normalize(torch.ones(4, 3), dim=-1) * signs).requires_grad_()
    b = (-a if opposite else a).detach().clone().requires_grad_()
    found = contrastive(a, b, scale=torch.tensor(100.0), tile=2)
    found.loss.backward()
    assert found.loss.item() == pytest.approx((200 if opposite else 0) + math.log(2), rel=1e-5)
    assert a.grad.isfinite().all()
    assert b.grad.isfinite().all()


@pytest.mark.parametrize("tile", [16, 64])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_half_precision_accumulates_in_float32(tile: int, autocast: bool, dtype: torch.dtype) -> None:
    """Beside the rounding of the inputs and of their gradients nothing is lost, under autocast neither."""
    valid = torch.arange(40) % 5 > 0
    a, b = unit(40, 64, seed=0).bfloat16(), unit(40, 64, seed=1).bfloat16()
    found = []
    for kind, is_cast in ((torch.float64, False), (dtype, autocast)):
        leaf = a.to(kind).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_cast):
            loss = contrastive(leaf, b.to(kind), scale=torch.tensor(100.0), valid_K=valid, tile=tile).loss
            loss.backward()
        found += [loss.detach(), leaf.grad]
    expected, expected_grad, ours, grad = found
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), expected, rtol=2e-6, atol=0)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=0 if dtype == torch.float32 else 2**-8, atol=2e-5)


@pytest.mark.parametrize("tile", [4, 64])
def test_backward_twice_is_the_same_gradient(tile: int) -> None:
    a, b = unit(9, 3, seed=0).requires_grad_(), unit(9, 3, seed=1)
    loss = contrastive(a, b, scale=torch.tensor(9.0), tile=tile).loss
    first, second = (torch.autograd.grad(loss, a, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


class _Largest(TorchDispatchMode):
    """Largest number of elements that any operation gave back."""

    found = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.found = max(self.found, *sizes, 0)
        return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [False, True])
def test_logits_are_never_whole(kind: str, masked: bool) -> None:
    rows, width, tile = 64, 4, 8
    leaves = {"a_KE": unit(rows, width, seed=0).requires_grad_(), "b_KE": unit(rows, width, seed=1).requires_grad_()}
    leaves |= arguments(kind)
    valid = torch.arange(rows) % 3 > 0 if masked else None
    with _Largest() as largest:
        loss = contrastive(**leaves, kind=kind, valid_K=valid, similar_text_threshold=0.5, tile=tile).loss
        saved = sum(0 if tensor is None else tensor.numel() for tensor in loss.grad_fn.saved_tensors)
        loss.backward()
    assert largest.found == rows * width  # the gradients; the logits would be 16 times as many
    assert saved <= 2 * rows * width + 2 * rows + 2  # both sides, a log-sum-exp each, the scalars


def test_a_frozen_side_gets_no_gradient() -> None:
    a, b = unit(9, 3, seed=0).requires_grad_(), unit(9, 3, seed=1)
    for left, right in ((a, b), (b, a)):
        loss = contrastive(left, right, scale=torch.tensor(9.0), tile=4).loss
        assert torch.autograd.grad(loss, a)[0].abs().sum() > 0
    assert b.grad is None


def test_one_bad_argument_is_named() -> None:
    a, one = unit(4, 3, seed=0), torch.tensor(1.0)
    for arguments_, message in (
        ({"b_KE": a[:3]}, r"expected two equal shapes \(K, E\), got \(4, 3\) and \(3, 3\)"),
        ({"b_KE": a.float()}, "one floating type, got torch.float64 and torch.float32"),
        ({"kind": "softmax"}, "kind: expected infonce or sigmoid, got 'softmax'"),
        ({"bias": one}, "bias: infonce has none"),
        ({"scale": torch.ones(2)}, r"scale: expected a scalar, got shape \(2,\)"),
        ({"valid_K": torch.ones(3, dtype=torch.bool)}, "valid_K: expected 4 booleans"),
        ({"valid_K": torch.ones(4)}, "valid_K: expected 4 booleans, one a row of a_KE, got torch.float32"),
        ({"tile": 0}, "tile: expected 1 or more rows, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            contrastive(**{"a_KE": a, "b_KE": a, "scale": one, **arguments_})


def naive_giou(one: list[float], other: list[float]) -> float:
    """Generalised IoU of two xyxy boxes, in plain numbers."""
    left, top, right, bottom = (
        pick(a, b) for pick, a, b in zip((max, max, min, min), one, other, strict=True)
    )  # of the overlap
    overlap = max(right - left, 0) * max(bottom - top, 0)
    union = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (one, other)) - overlap
    hull = (max(one[2], other[2]) - min(one[0], other[0])) * (max(one[3], other[3]) - min(one[1], other[1]))
    return overlap / union - (hull - union) / hull


coordinates = st.tuples(*[st.floats(0, 0.7)] * 2, *[st.floats(0.01, 0.3)] * 2)


@given(st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=5))
def test_box_losses_equal_the_definition(pairs) -> None:
    boxes = [[[x, y, x + width, y + height] for x, y, width, height in pair] for pair in pairs]
    predicted, labelled = torch.tensor(boxes, dtype=torch.float64).unbind(1)
    for kind, each in (
        ("l2", [sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / 4 for a, b in boxes]),
        (
            "l1_giou",
            [5 * sum(abs(p - q) for p, q in zip(a, b, strict=True)) / 4 + 2 * (1 - naive_giou(a, b)) for a, b in boxes],
        ),
    ):
        found = losses.box_loss(predicted, labelled, kind=kind)
        torch.testing.assert_close(found, torch.tensor(each, dtype=torch.float64))
        assert losses.box_loss(predicted.half(), labelled.half(), kind=kind).dtype == torch.float32


@pytest.mark.parametrize("kind", ["l2", "l1_giou"])
def test_box_losses_gradcheck(kind: str) -> None:
    corners = torch.rand(6, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.5
    boxes = torch.cat([corners, corners + torch.tensor([0.2, 0.35], dtype=torch.float64)], dim=-1)
    predicted, labelled = (side.clone().requires_grad_() for side in boxes.unbind(1))
    assert torch.autograd.gradcheck(lambda p, q: losses.box_loss(p, q, kind=kind), [predicted, labelled])


def test_box_losses_of_known_boxes() -> None:
    predicted, labelled = torch.tensor([[0.0, 0.0, 0.5, 0.5]]), torch.tensor([[0.5, 0.5, 1.0, 1.0]])
    assert losses.box_loss(predicted, labelled, kind="l2").item() == pytest.approx(0.25)
    # L1 0.5 times 5; GIoU of two quarter squares at opposite corners is 0 - 0.5.
    assert losses.box_loss(predicted, labelled, kind="l1_giou").item() == pytest.approx(2.5 + 2 * 1.5)
    assert losses.box_loss(labelled, labelled, kind="l1_giou").item() == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match="expected l2 or l1_giou, got 'l3'"):
        losses.box_loss(predicted, labelled, kind="l3")


def test_total_weighs_the_regions_by_the_images_that_have_them() -> None:
    image, region, grounding = (torch.tensor(value, requires_grad=True) for value in (3.0, 2.0, 0.5))
    found = losses.total(image, region, grounding, weight=2.0, share=torch.tensor(0.25))
    found.backward()
    assert found.item() == 3.0 + 0.5 * 2.5
    assert [leaf.grad.item() for leaf in (image, region, grounding)] == [1.0, 0.5, 0.5]
