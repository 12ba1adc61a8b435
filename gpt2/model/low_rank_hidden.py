"""Read and low-rank-update the MLP hidden state without materialising it.

All that reads h is linear, and what the mechanisms add to it has a small rank:
R (h + c U^T) = R h + (R U) c. One product over all rows of all readers replaces
one product per reader, and sums as wide as the MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Factored:
    """h [B, S, M] and what was added to it, kept as the rows that readers will see.

    ``readers``: matrices [rows, M] by name, in the order in which they will read.
    ``through``: from all their rows [R, M] to h R^T, [B, S, R]. ``once``: keeps what
    is made of weights alone, by name, from one token to the next; then there are no
    gradients.
    """

    def __init__(
        self,
        readers: Mapping[str, Tensor],
        through: Callable[[Tensor], Tensor],
        once: Callable[[str, Callable[[], Tensor]], Tensor] | None = None,
    ) -> None:
        matrices = list(readers.values())
        self.once, self.sums = once, 0

        def joined() -> Tensor:
            return torch.cat(matrices) if len(matrices) > 1 else matrices[0]

        self.matrix = joined() if once is None else once("readers", joined)
        self.rows = {name: matrix.shape[0] for name, matrix in readers.items()}
        self.seen = through(self.matrix)
        self.start = 0  # columns of ``seen`` before it have been read

    def add(self, low: Tensor, up: Tensor, mix: float) -> None:
        """mix low up^T; low [B, S, r], up [M, r]."""

        def product() -> Tensor:
            return self.matrix @ (mix * up)

        if self.once is None:
            # In place: the tensor that has been read is not used again.
            self.seen = self.seen + F.linear(low, product())
            return
        self.sums += 1
        into = self.once(f"sum {self.sums}", product)
        # In place, or a GPU copies first: what has been read is not used again.
        self.seen.flatten(0, 1).addmm_(low.flatten(0, 1), into.T)

    def read(self, name: str) -> Tensor:
        """The sum so far through the next reader's matrix, [B, S, rows]."""
        first, *rest = self.rows
        assert name == first, f"{first} reads before {name}"
        start, self.start = self.start, self.start + self.rows.pop(name)
        if not rest or self.once is not None:
            return self.seen[..., start : self.start]
        mine, self.seen = _Columns.apply(self.seen, start, self.start)
        return mine


class _Columns(torch.autograd.Function):
    """A copy of x[..., start:end], and x for those who read other columns of it.

    autograd's own way adds two gradients as wide as x. Here one is written into the
    other, which is zero there: torch.compile can do that in place, or along with what
    makes the other.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, start: int, end: int) -> tuple[Tensor, Tensor]:
        ctx.span = start, end
        return x[..., start:end].contiguous(), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        mine, rest = slopes
        return rest.slice_scatter(mine, -1, *ctx.span), None, None


Hidden = Tensor | Factored


def added(hidden: Hidden, low: Tensor, up: Tensor, mix: float) -> Hidden:
    """hidden + mix low up^T; low [B, S, r], up [M, r]."""
    if isinstance(hidden, Tensor):
        return hidden + F.linear(low, mix * up)
    hidden.add(low, up, mix)
    return hidden


def read(hidden: Hidden, name: str, matrix: Tensor) -> Tensor:
    """hidden through the matrix [rows, M] of a reader, [B, S, rows]."""
    if isinstance(hidden, Tensor):
        return F.linear(hidden, matrix)
    return hidden.read(name)
