"""Base classes of what plugs into a block, and the values that pass between the places.

A mechanism's layer.py names its classes: ``PROJECTION``, one Projection; ``ATTENTION``
and ``MLP``, an AttentionPart or MlpPart by the attribute of attention or MLP that holds
it, which names its parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from gpt2.mechanisms.needs import Statistic
from gpt2.model.backends.call import (
    Attended,
    Largest,
    OfHeads,
    Transposed,
)
from gpt2.model.context import LayerCache
from gpt2.model.low_rank_hidden import Hidden
from gpt2.settings.schema import Settings
from lib.kernels.rows import HeadGate

OPEN = 2.0  # initial bias of a gate: sigmoid(2) = 0.88, nearly open


def mixed(gate: Tensor, mix: float) -> Tensor:
    """The factor 1 - a + a g of a gate g of any shape, exactly 1 at a = 0."""
    return 1.0 - mix + mix * gate


@dataclass(frozen=True, slots=True)
class Heads:
    """Queries, keys and values from a projection, rows S of columns N.

    q [B, H, S, Dq], k [B, H or 1, N, Dq] and v [B, H or 1, N, Dv] may live in a
    latent space while decoding; then ``value_up`` [H, D, Dv] leads back.
    ``row_q`` and ``row_k`` [B, H, S, D] are the rows' own, per head, for a
    transposed score; a latent projection decodes without them if there is none.
    ``key_latent`` [B, S, L] is MLA's, for the MLP to read. ``qkv`` [B, S, 3, H, D] is
    there if q, k and v are views of it.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    row_q: Tensor | None
    row_k: Tensor | None
    value_up: Tensor | None = None
    key_latent: Tensor | None = None
    qkv: Tensor | None = None

    def expand(self, output: Tensor) -> Tensor:
        """Attention output in head space, [B, H, S, D]."""
        if self.value_up is None:
            return output
        return torch.einsum("bhsl,hdl->bhsd", output, self.value_up.to(output.dtype))

    def scaled(self, factor: Tensor) -> Heads:
        """These heads; queries, and so all scores, times one number per head [H]."""
        wide = factor.view(-1, 1, 1)  # in its own precision until after the product
        q = (self.q * wide).to(self.q.dtype)
        row_q = self.row_q
        if row_q is not None:
            row_q = q if row_q is self.q else (row_q * wide).to(q.dtype)
        # No qkv: the queries are not views of it any more.
        return Heads(
            q, self.k, self.v, row_q, self.row_k, self.value_up, self.key_latent
        )


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, S, H D] -> [B, H, S, D]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class Projection(nn.Module):
    """Projection of the block's input to queries, keys and values."""

    scale: float

    def forward(
        self,
        x: Tensor,
        *,
        latent: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Heads:
        """x [B, S, E]; ``latent`` [B, S, L] is added to the key latent."""
        raise NotImplementedError


class AttentionPart(nn.Module):
    """Part that a mechanism adds to the attention of a block; each method is optional.

    reads: a name in the context of the block before. A part that reads is left out of
    block 0, and its methods get that tensor as ``given``.
    """

    reads: ClassVar[str] = ""

    def __init__(self, settings: Settings) -> None:
        super().__init__()

    def latent(self, given: Tensor | None) -> Tensor | None:
        """Term added to the key latent, [B, S, L]."""
        return None

    def heads(self, heads: Heads) -> Heads:
        """Other queries, keys and values."""
        return heads

    def score_term(self, heads: Heads, cache: LayerCache | None) -> Transposed | None:
        """A term added to the scores."""
        return None

    def row_factor(self, find: Callable[[Statistic], Tensor]) -> Tensor | None:
        """Factor [B, H, S] on the logits of each row; ``find`` gives a statistic
        [B, H or 1, S] of the rows' weights without it."""
        return None

    def head_gate(self, given: Tensor | None) -> HeadGate | None:
        """Factor of ``row_factor`` or ``gate_heads``, for a kernel that decodes: it
        serves if each part that has one of these gives its factor here."""
        return None

    def gate_heads(
        self, out: Tensor, attended: Attended, given: Tensor | None
    ) -> Tensor:
        """The heads' outputs [B, H, S, D], gated."""
        return out

    def gate_output(self, out: Tensor, x: Tensor) -> Tensor:
        """The joined outputs [B, S, H D], gated; x [B, S, E] is the block's input."""
        return out


class AttentionSide(NamedTuple):
    """Values that the MLP of the same block may read besides its input: the key latent
    [B, S, L] and the weights averaged over heads [B, S, N]."""

    key_latent: Tensor | None
    mean_weights: Tensor | Largest | OfHeads | None


class MlpPart(nn.Module):
    """Part that a mechanism adds to the MLP's hidden state; each method is optional.

    factored: whether it touches the state only by ``read`` and ``added`` of
        low_rank_hidden, so that it need not be materialised.
    is_producer: whether making it is all it does, so that the last block has none.
    """

    factored: ClassVar[bool] = False
    is_producer: ClassVar[bool] = False

    def __init__(self, settings: Settings, produces: bool) -> None:
        """produces: whether there is a next block; settings: also of its heads."""
        super().__init__()

    def readers(self) -> dict[str, Tensor]:
        """Matrices [rows, M] with which ``update`` reads the state, in order."""
        return {}

    def update(
        self, hidden: Hidden, side: AttentionSide, cache: LayerCache | None
    ) -> Hidden:
        """The hidden state [B, S, M], changed."""
        return hidden

    def making_readers(self) -> dict[str, Tensor]:
        """Matrices by which ``make`` reads the hidden state, as in ``readers``."""
        return {}

    def make(self, hidden: Hidden, cache: LayerCache | None) -> Tensor:
        """Tensor for the next block, named ``hands_on`` in the spec."""
        raise NotImplementedError
