"""Contrastive losses whose logits are never whole: tiles, made in forward and made again in backward.

Forward keeps one log-sum-exp a row and a column. Backward makes each tile again, turns it into the gradient of its
logits and multiplies that into both sides. Beyond inputs and gradients (float32 ones, also of half precision) a few
tiles and vectors are held, whatever the batch. Where all logits fit into one tile they are kept, and nothing is made
twice.

With W ranks each computes its own rows against the columns of all: K * W * K logits, not (W * K)^2. It holds the
columns of all ranks, and the sums of their gradients.

Shapes: K rows of this rank, A = W * K rows of all ranks, E embedding width, I rows and J columns of a tile. Logits,
log-sum-exp and sums of gradients are float32 (float64 for float64 inputs), under autocast as well.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from cloc.model.tiles import Layout, Problem, Side, Tile, cut


class Kind(StrEnum):
    """What is made of the logits: softmax over rows and columns (CLIP), or a logistic loss of each pair (SigLIP)."""

    INFONCE = "infonce"
    SIGMOID = "sigmoid"


@dataclass(frozen=True)
class Settings:
    """What is fixed for a call.

    Attributes:
        kind: the loss.
        threshold: cosine of two texts beyond which their pair is dropped; 1 and more: no filter.
        tile: rows and columns of a tile.
        group: the ranks that share the batch; None: this process alone.
    """

    kind: Kind
    threshold: float
    tile: int
    group: dist.ProcessGroup | None

    @property
    def ranks(self) -> int:
        """W."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """Number of this rank in the group."""
        return 0 if self.group is None else dist.get_rank(self.group)


class TiledContrastive(torch.autograd.Function):
    """(a_KE, b_KE, scale, bias, valid_K, settings) -> loss, number of valid rows, number of dropped ordered pairs.

    All three are those of the global batch. Gradients are W times this rank's part, for DDP's mean over the ranks.
    Every rank takes part in every exchange, whether or not it has a valid row.
    """

    @staticmethod
    def forward(
        ctx: Any,
        a_KE: Tensor,
        b_KE: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        valid_K: Tensor | None,
        settings: Settings,
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(a_KE.device.type, enabled=False):
            ctx.settings = settings
            ctx.wants_columns = _wanted(
                ctx.needs_input_grad[1], like=a_KE, masked=valid_K is not None, settings=settings
            )
            b_AE, valid_A = _gather(b_KE, settings), None if valid_K is None else _gather(valid_K, settings)
            ctx.layout = cut(len(a_KE), rank=settings.rank, ranks=settings.ranks, valid_A=valid_A, tile=settings.tile)
            problem = _problem(a_KE, b_AE, scale, bias, ctx.layout, settings)
            objective = _OBJECTIVES[settings.kind](problem)
            dropped, kept = objective.new_sum(), list[Tensor]()
            for tile in problem.tiles():
                logits_IJ = problem.logits(tile)
                if tile.dropped_IJ is not None:
                    dropped += tile.dropped_IJ.count_nonzero()
                objective.fold(tile, logits_IJ)
                if problem.keeps_logits:
                    kept.append(logits_IJ)
            sums = torch.stack([objective.total(settings), dropped])
            _reduce(sums, settings)
            ctx.save_for_backward(a_KE, b_AE, scale, bias, problem.a.lse_R, problem.b.lse_R, *kept)
            loss = (sums[0] / max(ctx.layout.valid, 1)).to(problem.a.lse_R.dtype)
            valid, filtered = torch.full_like(sums[1], ctx.layout.valid, dtype=torch.long), sums[1].long()
            ctx.mark_non_differentiable(valid, filtered)
            return loss, valid, filtered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        a_KE, b_AE, scale, bias, row_lse_K, column_lse_A, *kept = ctx.saved_tensors
        settings: Settings = ctx.settings
        with torch.autocast(a_KE.device.type, enabled=False):
            problem = _problem(a_KE, b_AE, scale, bias, ctx.layout, settings)
            a, b = problem.a, problem.b
            a.lse_R, b.lse_R = row_lse_K, column_lse_A
            a.grad_RE = a.lse_R.new_zeros(a_KE.shape)
            b.grad_RE = a.lse_R.new_zeros(b_AE.shape) if ctx.wants_columns else None
            objective = _OBJECTIVES[settings.kind](problem)
            bias_sum = objective.new_sum()
            for number, tile in enumerate(problem.tiles(filtered=not kept)):
                logits_IJ = kept[number] if kept else problem.logits(tile)
                weights_IJ = objective.gradient(tile, logits_IJ)
                tile.x.add_grad(tile.rows, weights_IJ, tile.y_JE)
                tile.y.add_grad(tile.columns, weights_IJ.T, tile.x_IE)
                if bias is not None:
                    bias_sum += weights_IJ.sum()
            factor = grad_loss * (objective.weight * settings.ranks / max(ctx.layout.valid, 1))
            scale_sum = _inner(a, ctx.layout)  # sum of cosines times the gradients of their logits
            grad_b_KE = None
            if b.grad_RE is not None:
                grad_b_KE = _scatter(b.grad_RE, settings).mul_(factor * problem.scale).to(b_AE.dtype)
            return (
                a.grad_RE.mul_(factor * problem.scale).to(a_KE.dtype),
                grad_b_KE,
                (scale_sum * factor).to(scale.dtype).view(scale.shape),
                None if bias is None else (bias_sum * factor).to(bias.dtype).view(bias.shape),
                None,
                None,
            )


class _Objective(ABC):
    """A loss as a sum over tiles, and the gradient of a tile's logits."""

    weight: float
    """Factor of the gradients beside that of the mean."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def new_sum(self) -> Tensor:
        """A float64 zero: exact for counts, and sums of a billion terms keep their digits."""
        return self.problem.a.lse_R.new_zeros((), dtype=torch.float64)

    @abstractmethod
    def fold(self, tile: Tile, logits_IJ: Tensor) -> None:
        """Takes a tile into the loss; leaves the logits as they are."""

    @abstractmethod
    def total(self, settings: Settings) -> Tensor:
        """This rank's sum over its valid rows, once all tiles are in; a float64 scalar."""

    @abstractmethod
    def gradient(self, tile: Tile, logits_IJ: Tensor) -> Tensor:
        """Gradient of the loss with respect to the logits, before `weight`; logits that are not kept may be lost."""


class _InfoNCE(_Objective):
    """(row log-sum-exp + column log-sum-exp) / 2 - logit of the pair, at each valid row."""

    weight = 0.5

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.positives = list[Tensor]()

    def fold(self, tile: Tile, logits_IJ: Tensor) -> None:
        tile.x.fold(tile.rows, self._lse(logits_IJ, 1))
        tile.y.fold(tile.columns, self._lse(logits_IJ, 0))
        if tile.is_diagonal:
            self.positives.append(logits_IJ.diagonal().clone())

    def total(self, settings: Settings) -> Tensor:
        a, b = self.problem.a, self.problem.b
        _join_lse(b.lse_R, settings)
        total = self.new_sum()
        for span, positive_I in zip(self.problem.layout.own, self.positives, strict=True):
            total += ((a.lse_R[span.here] + b.lse_R[span.there]) / 2 - positive_I).sum(dtype=total.dtype)
        return total

    def gradient(self, tile: Tile, logits_IJ: Tensor) -> Tensor:
        buffer = self.problem.buffer
        by_row_IJ = torch.sub(logits_IJ, tile.x.lse_R[tile.rows, None], out=buffer("powers", logits_IJ.shape)).exp_()
        out_IJ = buffer("columns", logits_IJ.shape) if self.problem.keeps_logits else logits_IJ
        by_column_IJ = torch.sub(logits_IJ, tile.y.lse_R[tile.columns], out=out_IJ).exp_()
        weights_IJ = by_row_IJ.add_(by_column_IJ)
        if tile.is_diagonal:
            weights_IJ.diagonal().sub_(2)
        return weights_IJ

    def _lse(self, logits_IJ: Tensor, dim: int) -> Tensor:
        """Log-sum-exp of a tile along a dimension; -inf where everything is dropped."""
        highest = logits_IJ.amax(dim, keepdim=True).clamp_min_(torch.finfo(logits_IJ.dtype).min)
        powers_IJ = torch.sub(logits_IJ, highest, out=self.problem.buffer("powers", logits_IJ.shape)).exp_()
        return powers_IJ.sum(dim).log_().add_(highest.squeeze(dim))


class _Sigmoid(_Objective):
    """log(1 + e^z) at each kept pair that does not belong together, log(1 + e^-z) at each that does."""

    weight = 1.0

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.sum = self.new_sum()

    def fold(self, tile: Tile, logits_IJ: Tensor) -> None:
        if tile.is_diagonal:
            logits_IJ.diagonal().neg_()
        # log(1 + e^z) = max(z, 0) + log(1 + e^-|z|): no overflow, and 0 at -inf.
        small_IJ = torch.abs(logits_IJ, out=self.problem.buffer("powers", logits_IJ.shape)).neg_().exp_().log1p_()
        self.sum += small_IJ.sum()
        large_IJ = torch.clamp_min(logits_IJ, 0, out=small_IJ)
        self.sum += large_IJ.sum()
        if tile.is_diagonal:
            logits_IJ.diagonal().neg_()

    def total(self, settings: Settings) -> Tensor:
        return self.sum

    def gradient(self, tile: Tile, logits_IJ: Tensor) -> Tensor:
        weights_IJ = torch.sigmoid(logits_IJ, out=self.problem.buffer("powers", logits_IJ.shape))
        if tile.is_diagonal:
            # -sigmoid(-z), where sigmoid(z) - 1 would lose the digits of a pair that is already told apart.
            weights_IJ.diagonal().copy_(torch.sigmoid(-logits_IJ.diagonal()).neg_())
        return weights_IJ


_OBJECTIVES: dict[Kind, type[_Objective]] = {Kind.INFONCE: _InfoNCE, Kind.SIGMOID: _Sigmoid}


def _problem(
    a_KE: Tensor, b_AE: Tensor, scale: Tensor, bias: Tensor | None, layout: Layout, settings: Settings
) -> Problem:
    dtype = torch.float64 if a_KE.dtype == torch.float64 else torch.float32
    a, b = (
        Side(vectors, torch.full((len(vectors),), float("-inf"), dtype=dtype, device=vectors.device))
        for vectors in (a_KE.detach(), b_AE.detach())
    )
    offset = 0.0 if bias is None else bias.item()
    return Problem(a, b, layout=layout, scale=scale.item(), bias=offset, threshold=settings.threshold)


def _inner(side: Side, layout: Layout) -> Tensor:
    """Sum of vectors times gradients over this rank's valid rows, a tile at a time."""
    assert side.grad_RE is not None
    total = side.lse_R.new_zeros((), dtype=torch.float64)
    for span in layout.own:
        total += (side.take(span.here) * side.grad_RE[span.here]).sum(dtype=total.dtype)
    return total


def _wanted(wanted: bool, *, like: Tensor, masked: bool, settings: Settings) -> bool:
    """Whether any rank wants it; checks on the way that the ranks' arguments go together.

    Raises:
        ValueError: they do not (on every rank, where an exchange of unequal parts would hang or mix up rows).
    """
    if settings.ranks == 1:
        return wanted
    own = torch.tensor([[*like.shape, masked, wanted]], device=like.device)
    each = _gather(own, settings)
    if not bool((each[:, :-1] == own[:, :-1]).all()):
        found = "; ".join(
            f"rank {rank}: {(rows, width)} {'with' if mask else 'without'} valid_K"
            for rank, (rows, width, mask, _) in enumerate(each.tolist())
        )
        raise ValueError(
            f"a_KE: ranks hold different shapes ({found}); give every rank equally many rows, and valid_K to all or"
            " none"
        )
    return bool(each[:, -1].any())


def _gather(part_KX: Tensor, settings: Settings) -> Tensor:
    """Rows of all ranks in rank order."""
    if settings.ranks == 1:
        return part_KX
    whole = part_KX.new_empty((settings.ranks * len(part_KX), *part_KX.shape[1:]))
    dist.all_gather_single(whole, part_KX.detach().contiguous(), group=settings.group)
    return whole


def _scatter(whole_AE: Tensor, settings: Settings) -> Tensor:
    """This rank's rows of the sum over the ranks."""
    if settings.ranks == 1:
        return whole_AE
    part_KE = whole_AE.new_empty((len(whole_AE) // settings.ranks, whole_AE.shape[1]))
    dist.reduce_scatter_single(part_KE, whole_AE, group=settings.group)
    return part_KE


def _reduce(value: Tensor, settings: Settings) -> None:
    if settings.ranks > 1:
        dist.all_reduce(value, group=settings.group)


def _join_lse(lse_A: Tensor, settings: Settings) -> None:
    """Log-sum-exp over the rows of all ranks, from that over the rows of each, in place; -inf at absent columns."""
    if settings.ranks == 1:
        return
    highest_A = lse_A.clone()
    dist.all_reduce(highest_A, dist.ReduceOp.MAX, group=settings.group)
    highest_A.clamp_min_(torch.finfo(lse_A.dtype).min)
    lse_A.sub_(highest_A).exp_()
    _reduce(lse_A, settings)
    lse_A.log_().add_(highest_A)
