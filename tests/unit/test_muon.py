"""Muon against torch's own, and against what it is to do: orthogonal updates of AdamW's size."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cloc.model.muon import Muon, orthogonalized

SHAPES = [(16, 48), (48, 16), (32, 32)]


def _weights(seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def _steps(optimizer: torch.optim.Optimizer, weights: list[torch.nn.Parameter], count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()


def test_steps_are_those_of_torch_but_for_bfloat16() -> None:
    ours, theirs, before = _weights(), _weights(), _weights()
    _steps(Muon(ours, lr=0.02, weight_decay=0.1), ours, 5)
    _steps(torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"), theirs, 5)
    for own, other, start in zip(ours, theirs, before, strict=True):
        assert (own - other).norm() < 0.02 * (other - start).norm()


@given(rows=st.integers(2, 24), columns=st.integers(2, 24), seed=st.integers(0, 2**31 - 1), scale=st.floats(1e-3, 1e3))
def test_an_update_has_the_vectors_of_the_gradient_and_singular_values_of_about_one(
    rows: int, columns: int, seed: int, scale: float
) -> None:
    rank = min(rows, columns)
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, rank, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(columns, rank, generator=generator))[0]
    sizes = torch.linspace(0.3, 1.0, rank) * scale
    update = orthogonalized(left @ torch.diag(sizes) @ right.T)
    assert update.dtype == torch.float32
    turned = left.T @ update @ right  # diagonal where the vectors are the same
    assert (turned - torch.diag(torch.diagonal(turned))).abs().max() < 1e-3
    assert ((torch.diagonal(turned) > 0.5) & (torch.diagonal(turned) < 1.5)).all()


def test_a_gradient_of_zeros_moves_nothing() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 8))
    weight.grad = torch.zeros(4, 8)
    Muon([weight], weight_decay=0.0).step()
    assert torch.equal(weight, torch.ones(4, 8))


def test_what_has_no_gradient_stays_and_the_closure_is_asked() -> None:
    moved, still = _weights()[:2]
    start = still.detach().clone()

    def closure() -> float:
        moved.sum().backward()
        return 7.0

    assert Muon([moved, still]).step(closure) == 7.0
    assert torch.equal(still, start)
    assert not torch.equal(moved, _weights()[0])


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a parameter has the shape \(8,\)"):
        Muon([torch.nn.Parameter(torch.zeros(8))])
