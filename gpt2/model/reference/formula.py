"""Base class of the mechanisms' naive formulas, which gpt2/model/reference calls.

A mechanism's naive.py names its class ``FORMULA``, for one sequence in one block: whole
T x T matrices, without a line shared with its layer but the names of the weights.

Shapes: T tokens, E width, H heads, D head width, L latent, M MLP width. Matrices are
[out, in], as torch keeps them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from gpt2.settings.schema import Settings

Weights = Mapping[str, Tensor]


class Projected(NamedTuple):
    """q, k and v [H, T, D], or [1, T, D] where all heads share them, and the key latent
    [T, L] of plain MLA."""

    q: Tensor
    k: Tensor
    v: Tensor
    key_latent: Tensor | None = None


class BlockFormula:
    """Changes of a mechanism in one block; by default each method changes nothing.

    weights: of the whole model; number: of the block.
    """

    def __init__(self, weights: Weights, settings: Settings, number: int) -> None:
        self.weights, self.prefix = weights, f"blocks.{number}."
        self.model, self.x = settings.model, settings.mechanisms

    def get(self, name: str) -> Tensor:
        """A tensor of the block."""
        return self.weights[self.prefix + name]

    def linear(self, name: str, x: Tensor) -> Tensor:
        """x [..., in] W^T + b, [..., out]."""
        bias = self.weights.get(f"{self.prefix}{name}.bias", 0.0)
        return x @ self.get(f"{name}.weight").T + bias

    def each(self, name: str, x: Tensor, parts: int) -> Tensor:
        """x [T, in] projected and cut into equal parts, one per head: [H, T, D]."""
        return torch.stack(self.linear(f"attn.projection.{name}", x).chunk(parts, -1))

    # ---- the places, in the order in which they are visited -------------------------

    def latent(self, ctx: Mapping[str, Tensor]) -> Tensor | None:
        """Term added to the key latent [T, L]."""
        return None

    def projected(self, x: Tensor, latent: Tensor | None) -> Projected:
        """Multi-head attention's, of x [T, E]."""
        return Projected(*self.each("qkv", x, 3 * self.model.n_head).chunk(3))

    def scores(self, scores: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Scores [H, T, T], keys ahead included, before 1 / sqrt(D)."""
        return scores

    def logits(self, scores: Tensor) -> Tensor:
        """Logits [H, T, T] of the softmax."""
        return scores

    def outputs(
        self, outputs: Tensor, weights: Tensor, x: Tensor, ctx: Mapping[str, Tensor]
    ) -> Tensor:
        """The heads' outputs [H, T, D] by their weights [H, T, T]; x [T, E] is the
        attention's input, ctx what the block before made."""
        return outputs

    def hidden(self, h: Tensor, weights: Tensor, key_latent: Tensor | None) -> Tensor:
        """The MLP's hidden state [T, M]."""
        return h

    def made(self, h: Tensor) -> Tensor:
        """Tensor for the next block, named ``hands_on`` in the spec."""
        raise NotImplementedError


def softmax(scores: Tensor) -> Tensor:
    """Softmax over the visible keys of each row, [..., T, T]; 0 for those ahead."""
    ahead = torch.ones(scores.shape[-2:], device=scores.device).triu(1).bool()
    return scores.masked_fill(ahead, -math.inf).softmax(-1)


def visible(rows: Tensor) -> Tensor:
    """How many keys each of T rows [..., T, N] sees: 1 to T, in their type."""
    return torch.arange(1, rows.shape[-2] + 1, dtype=rows.dtype, device=rows.device)
