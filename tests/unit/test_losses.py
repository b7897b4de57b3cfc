"""Losses against plain float64 references: value and gradient."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cloc.model import losses


def unit(rows: int, width: int, *, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=-1)


def naive_region_loss(regions: Tensor, texts: Tensor, scale: float, valid: list[bool], threshold: float) -> Tensor:
    """METHOD's definition with loops: mean over valid pairs of (R->T + T->R) / 2, filtered pairs in no denominator."""
    total, count = torch.zeros((), dtype=regions.dtype), 0
    with torch.no_grad():
        similar = texts @ texts.T > threshold if threshold < 1 else torch.zeros(len(texts), len(texts)).bool()
    for i in range(len(regions)):
        if not valid[i]:
            continue
        count += 1
        kept = [j for j in range(len(regions)) if valid[j] and (j == i or not similar[i, j])]
        to_text = torch.stack([scale * (regions[i] @ texts[j]) for j in kept])
        to_region = torch.stack([scale * (texts[i] @ regions[j]) for j in kept])
        positive = scale * (regions[i] @ texts[i])
        total = total + (to_text.logsumexp(0) + to_region.logsumexp(0)) / 2 - positive
    return total / max(count, 1)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 9),
    seed=st.integers(0, 1000),
    duplicates=st.integers(0, 3),
    threshold=st.sampled_from([0.3, 0.9, 1.0]),
    data=st.data(),
)
def test_region_loss_equals_the_definition(rows: int, seed: int, duplicates: int, threshold: float, data) -> None:
    valid = data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
    regions, texts = unit(rows, 5, seed=seed), unit(rows, 5, seed=seed + 1)
    texts[: min(duplicates, rows)] = texts[0].clone()
    pairs = []
    for function in (
        lambda r, t: losses.region_contrastive(
            r, t, scale=torch.tensor(7.0), valid_K=torch.tensor(valid), similar_text_threshold=threshold
        ),
        lambda r, t: naive_region_loss(r, t, 7.0, valid, threshold),
    ):
        r, t = regions.clone().requires_grad_(), texts.clone().requires_grad_()
        value = function(r, t)
        value.backward() if value.requires_grad else None
        pairs.append((value.detach().double(), r.grad, t.grad))
    (ours, ours_r, ours_t), (naive, naive_r, naive_t) = pairs
    torch.testing.assert_close(ours, naive, rtol=1e-4, atol=1e-5)
    for mine, reference in ((ours_r, naive_r), (ours_t, naive_t)):
        reference = torch.zeros_like(regions) if reference is None else reference
        torch.testing.assert_close(mine, reference, rtol=1e-3, atol=1e-5)


def test_image_loss_equals_cross_entropy() -> None:
    a, b = unit(6, 4, seed=0), unit(6, 4, seed=1)
    logits = 5 * a @ b.T
    target = torch.arange(6)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(
        losses.contrastive(a, b, scale=torch.tensor(5.0)).double(), expected, rtol=1e-5, atol=1e-6
    )


def test_no_region_at_all_gives_zero_and_a_gradient() -> None:
    regions = unit(4, 3, seed=0).requires_grad_()
    loss = losses.region_contrastive(
        regions,
        unit(4, 3, seed=1),
        scale=torch.tensor(1.0),
        valid_K=torch.zeros(4, dtype=torch.bool),
        similar_text_threshold=0.9,
    )
    loss.backward()
    assert loss.item() == 0
    assert regions.grad is not None
    assert regions.grad.abs().sum() == 0


def test_equal_texts_leave_no_negatives() -> None:
    texts = unit(1, 4, seed=0).expand(5, 4)
    loss = losses.region_contrastive(
        unit(5, 4, seed=1),
        texts,
        scale=torch.tensor(10.0),
        valid_K=torch.ones(5, dtype=torch.bool),
        similar_text_threshold=0.9,
    )
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_half_precision_at_the_largest_scale_is_finite() -> None:
    same = torch.ones(8, 16, dtype=torch.bfloat16) / 4
    loss = losses.contrastive(same, same, scale=torch.tensor(100.0))
    assert loss.item() == pytest.approx(math.log(8), abs=1e-3)


def test_duplicate_share_counts_off_diagonal_pairs() -> None:
    texts = torch.eye(4)
    texts[1] = texts[0]
    share = losses.duplicate_share(texts, valid_K=torch.ones(4, dtype=torch.bool), threshold=0.9)
    assert share.item() == pytest.approx(2 / 12)


def test_box_losses_of_known_boxes() -> None:
    predicted, labelled = torch.tensor([[0.0, 0.0, 0.5, 0.5]]), torch.tensor([[0.5, 0.5, 1.0, 1.0]])
    assert losses.box_loss(predicted, labelled, kind="l2").item() == pytest.approx(0.25)
    # L1 0.5 times 5; GIoU of two quarter squares at opposite corners is 0 - 0.5.
    assert losses.box_loss(predicted, labelled, kind="l1_giou").item() == pytest.approx(2.5 + 2 * 1.5)
    assert losses.box_loss(labelled, labelled, kind="l1_giou").item() == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match="expected l2 or l1_giou, got 'l3'"):
        losses.box_loss(predicted, labelled, kind="l3")
