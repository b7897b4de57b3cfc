"""Cutting the logits of a contrastive loss into tiles: which rows and columns, their vectors, the filter, the product.

Shapes: K rows of this rank, A = W * K rows of all W ranks, R either of them, E embedding width, I rows and J columns of
a tile. Logits are float32, or float64 for float64 vectors.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

Rows = slice | Tensor
"""Numbers of rows: a slice where all are valid (its tiles are views), else their indices."""


@dataclass(frozen=True)
class Span:
    """A tile of this rank's rows: their numbers here, and among the rows of all ranks."""

    here: Rows
    there: Rows


@dataclass(frozen=True)
class Layout:
    """How the valid rows are cut into tiles.

    Attributes:
        own: tiles of this rank's rows.
        others: tiles of the other ranks' rows.
        size: number of this rank's logits.
        valid: number of valid rows of all ranks.
        area: largest number of logits in a tile.
    """

    own: list[Span]
    others: list[Rows]
    size: int
    valid: int
    area: int


def cut(rows: int, *, rank: int, ranks: int, valid_A: Tensor | None, tile: int) -> Layout:
    """Cuts this rank's valid rows, and the valid rows of all others, into tiles.

    Args:
        rows: K.
        valid_A: which rows of all ranks count; None: all.
        tile: rows of a tile. A rank with fewer takes more columns of the others at once, to the same area.
    """
    first, last = rank * rows, (rank + 1) * rows
    own = _split(slice(first, last), valid_A, tile)
    own_count = sum(map(length, own))
    wide = min(4 * tile, tile * tile // max(min(own_count, tile), 1))
    others = [
        *_split(slice(0, first), valid_A, wide),
        *_split(slice(last, ranks * rows), valid_A, wide),
    ]
    spans = [Span(here=_shift(there, -first), there=there) for there in own]
    valid = own_count + sum(map(length, others))
    return Layout(own=spans, others=others, size=own_count * valid, valid=valid, area=tile * tile)


def length(rows: Rows) -> int:
    """Number of rows."""
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def _split(whole: slice, valid_A: Tensor | None, tile: int) -> list[Rows]:
    valid_R = None if valid_A is None else valid_A[whole]
    if valid_R is None or bool(valid_R.all()):
        return [slice(first, min(first + tile, whole.stop)) for first in range(whole.start, whole.stop, tile)]
    index = valid_R.nonzero().squeeze(1).add_(whole.start)
    return list(index.split(tile)) if len(index) else []


def _shift(rows: Rows, by: int) -> Rows:
    if by == 0:
        return rows
    return slice(rows.start + by, rows.stop + by) if isinstance(rows, slice) else rows + by


@dataclass
class Side:
    """One of the two sets of vectors, with what the passes gather for each of its rows."""

    vectors_RE: Tensor
    lse_R: Tensor
    grad_RE: Tensor | None = None

    def take(self, rows: Rows) -> Tensor:
        """Vectors of a tile in the precision of the logits: a view where possible."""
        return self.vectors_RE[rows].to(self.lse_R.dtype)

    def fold(self, rows: Rows, lse_I: Tensor) -> None:
        """Joins the log-sum-exp over a further tile to that of the earlier ones."""
        self.lse_R[rows] = torch.logaddexp(self.lse_R[rows], lse_I)

    def add_grad(self, rows: Rows, weights_IJ: Tensor, vectors_JE: Tensor) -> None:
        """Adds a tile's product to the gradient of its rows, where one is wanted."""
        if self.grad_RE is None:
            return
        if isinstance(rows, slice):
            self.grad_RE[rows].addmm_(weights_IJ, vectors_JE)
        else:
            self.grad_RE.index_add_(0, rows, weights_IJ @ vectors_JE)


@dataclass(frozen=True)
class Tile:
    """Rows of `x` against rows of `y`.

    Attributes:
        x, y: the sides: a and b, or b and a.
        rows, columns: numbers of the rows in x and in y.
        x_IE, y_JE: their vectors.
        is_diagonal: whether row i and column i are a pair.
        dropped_IJ: what the filter takes out.
    """

    x: Side
    y: Side
    rows: Rows
    columns: Rows
    x_IE: Tensor
    y_JE: Tensor
    is_diagonal: bool
    dropped_IJ: Tensor | None


@dataclass
class Problem:
    """Both sides, the layout and the scalars: what forward and backward walk over.

    Attributes:
        a: this rank's rows (K).
        b: the columns of all ranks (A); the texts that the filter compares.
        scale, bias: logits are scale * cosine + bias.
        threshold: cosine of two texts beyond which their pair is dropped; at 1 and more nothing is compared.
    """

    a: Side
    b: Side
    layout: Layout
    scale: float
    bias: float
    threshold: float
    _buffers: dict[str, Tensor] = field(default_factory=dict)

    @property
    def keeps_logits(self) -> bool:
        """Whether all logits fit into one tile's memory, so that backward takes them from forward."""
        return self.layout.size <= self.layout.area

    def tiles(self, *, filtered: bool = True) -> Iterator[Tile]:
        """All tiles of this rank, always in the same order.

        Text i is as similar to j as j to i: a tile among the own rows and its mirror image share one product of texts.
        The mirror image comes as a tile of the swapped sides.
        """
        a, b = self.a, self.b
        for number, rows in enumerate(self.layout.own):
            a_IE, b_IE = a.take(rows.here), b.take(rows.there)
            for columns in self.layout.own[number:]:
                is_diagonal = columns is rows
                a_JE, b_JE = (a_IE, b_IE) if is_diagonal else (a.take(columns.here), b.take(columns.there))
                dropped_IJ = self._dropped(b_IE, b_JE, is_diagonal=is_diagonal) if filtered else None
                yield Tile(a, b, rows.here, columns.there, a_IE, b_JE, is_diagonal, dropped_IJ)
                if not is_diagonal:
                    yield Tile(b, a, rows.there, columns.here, b_IE, a_JE, False, dropped_IJ)
            for others in self.layout.others:
                b_JE = b.take(others)
                dropped_IJ = self._dropped(b_IE, b_JE, is_diagonal=False) if filtered else None
                yield Tile(a, b, rows.here, others, a_IE, b_JE, False, dropped_IJ)

    def logits(self, tile: Tile) -> Tensor:
        """Logits of a tile, -inf where the filter drops; the next call overwrites them unless they are kept."""
        shape = (len(tile.x_IE), len(tile.y_JE))
        out_IJ = tile.x_IE.new_empty(shape) if self.keeps_logits else self.buffer("logits", shape)
        torch.addmm(out_IJ, tile.x_IE, tile.y_JE.T, beta=0, alpha=self.scale, out=out_IJ)
        if self.bias:
            out_IJ.add_(self.bias)
        if tile.dropped_IJ is not None:
            out_IJ.masked_fill_(tile.dropped_IJ, float("-inf"))
        return out_IJ

    def buffer(self, name: str, shape: torch.Size | tuple[int, int], dtype: torch.dtype | None = None) -> Tensor:
        """A tile's memory, used again and again: fresh pages cost more than the arithmetic on them."""
        size = shape[0] * shape[1]
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = self.a.lse_R.new_empty(size, dtype=dtype)
        return self._buffers[name][:size].view(shape)

    def _dropped(self, texts_IE: Tensor, texts_JE: Tensor, *, is_diagonal: bool) -> Tensor | None:
        if self.threshold >= 1:
            return None
        shape = (len(texts_IE), len(texts_JE))
        similar_IJ = torch.mm(texts_IE, texts_JE.T, out=self.buffer("texts", shape))
        if is_diagonal:
            similar_IJ.fill_diagonal_(float("-inf"))
        return torch.gt(similar_IJ, self.threshold, out=self.buffer("dropped", shape, torch.bool))
