"""RA_MLA_Block: attention and MLP with context flowing between blocks."""

from __future__ import annotations

from torch import Tensor, nn

from gpt2.model.attention import CausalAttention
from gpt2.model.context import BlockContext, LayerCache
from gpt2.model.mlp import MLP
from gpt2.settings.schema import Settings


class RA_MLA_Block(nn.Module):  # the name its users know
    """One pre-norm transformer block.

    Block 0 consumes no context and the last produces none, by construction: a
    producer without a reader would be a dead parameter. ``after``: the settings of
    the next block, for whose heads this one makes gates; by default its own.
    """

    def __init__(
        self, settings: Settings, layer: int, after: Settings | None = None
    ) -> None:
        super().__init__()
        m = settings.model
        self.ln_1 = nn.LayerNorm(m.n_embd, bias=m.bias)
        self.attn = CausalAttention(settings, layer)
        self.ln_2 = nn.LayerNorm(m.n_embd, bias=m.bias)
        self.mlp = MLP(after or settings, produces=layer < m.n_layer - 1)

    def forward(
        self,
        x: Tensor,
        *,
        ctx: BlockContext,
        cache: LayerCache | None = None,
    ) -> tuple[Tensor, BlockContext]:
        """x [B, S, E] and the context of the block before -> both for the next."""
        return self.from_normed(x, self.ln_1(x), ctx=ctx, cache=cache)

    def from_normed(
        self,
        x: Tensor,
        normed: Tensor,
        *,
        ctx: BlockContext,
        cache: LayerCache | None = None,
    ) -> tuple[Tensor, BlockContext]:
        """``forward``, given ln_1(x) as ``normed``."""
        attended, side = self.attn(normed, ctx=ctx, cache=cache)
        x = x + attended
        result = self.mlp(self.ln_2(x), side=side, cache=cache)
        return x + result.output, result.ctx
