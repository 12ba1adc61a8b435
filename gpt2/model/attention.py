"""Causal self-attention: projection, scores, gates, output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gpt2.mechanisms import needs_of
from gpt2.model.backends.call import Attended, AttentionCall, Largest
from gpt2.model.backends.registry import attend
from gpt2.model.context import BlockContext, LayerCache
from gpt2.model.gating import OutputGate, StatisticGate, mixed
from gpt2.model.reciprocal import Reciprocity
from gpt2.settings.schema import Settings


@dataclass(frozen=True, slots=True)
class Heads:
    """What a projection gives to the attention, rows S of columns N.

    q [B, H, S, Dq], k [B, H or 1, N, Dq] and v [B, H or 1, N, Dv] may live in a
    latent space while decoding; then ``value_up`` [H, D, Dv] leads back.
    ``row_q`` and ``row_k`` [B, H, S, D] are the rows' own, per head, for the
    transposed score. ``key_latent`` [B, S, L] is MLA's, for the MLP to read.
    ``qkv`` [B, S, 3, H, D] is there if q, k and v are views of it.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    row_q: Tensor
    row_k: Tensor
    value_up: Tensor | None = None
    key_latent: Tensor | None = None
    qkv: Tensor | None = None

    def expand(self, output: Tensor) -> Tensor:
        """Attention output in head space, [B, H, S, D]."""
        if self.value_up is None:
            return output
        return torch.einsum("bhsl,hdl->bhsd", output, self.value_up.to(output.dtype))


class Projection(nn.Module):
    """Base of what turns the block's input into queries, keys and values."""

    scale: float

    def forward(
        self,
        x: Tensor,
        *,
        latent: Tensor | None = None,
        cache: LayerCache | None = None,
        position: int = 0,
    ) -> Heads:
        """x [B, S, E]; ``latent`` [B, S, L] from the block before."""
        raise NotImplementedError


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, S, H D] -> [B, H, S, D]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class MultiHead(Projection):
    """GPT-2's own projection: one matrix for queries, keys and values."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        m = settings.model
        self.heads, self.scale = m.n_head, m.head_dim**-0.5
        self.qkv = nn.Linear(m.n_embd, 3 * m.n_head * m.head_dim, bias=m.bias)

    def forward(
        self,
        x: Tensor,
        *,
        latent: Tensor | None = None,
        cache: LayerCache | None = None,
        position: int = 0,
    ) -> Heads:
        assert latent is None, "multi-head attention has no latent to add to"
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        if cache is None:
            return Heads(q, k, v, q, k, qkv=qkv)
        return Heads(q, cache.extend("k", k, 2), cache.extend("v", v, 2), q, k)


class AttentionSide(NamedTuple):
    """What the MLP of the same block may read besides its input."""

    key_latent: Tensor | None
    mean_weights: Tensor | Largest | None


class CausalAttention(nn.Module):
    """Attention of one block with the mechanisms its settings switch on."""

    def __init__(self, settings: Settings, projection: Projection, layer: int) -> None:
        super().__init__()
        m, x = settings.model, settings.mechanisms
        self.layer, self.heads = layer, m.n_head
        self.backend = settings.resources.attention_backend
        self.dropout_p = m.dropout
        self.projection = projection
        self.reciprocity = Reciprocity(settings) if x.ra else None
        self.ract = StatisticGate(settings) if x.ract else None
        self.reads_gate, self.gate_mix = x.mlp_gate and layer > 0, x.mlp_gate_mix
        self.reads_latent = x.latent != "none" and layer > 0
        self.output_gate = OutputGate(settings) if x.output_gate else None
        self.wants_mean = x.cross_token
        self.kept = needs_of(settings).kept
        self.proj = nn.Linear(m.n_head * m.head_dim, m.n_embd, bias=m.bias)
        self.dropout = nn.Dropout(m.dropout)

    def forward(
        self,
        x: Tensor,
        *,
        ctx: BlockContext,
        cache: LayerCache | None = None,
        position: int = 0,
    ) -> tuple[Tensor, AttentionSide]:
        """x [B, S, E], the block's normed input -> [B, S, E] and the side."""
        heads = self.projection(
            x, latent=self._latent(ctx), cache=cache, position=position
        )
        attended = self.weigh(heads, cache)
        out = heads.expand(attended.output)
        if self.ract is not None and not self.ract.at_weights:
            assert attended.statistic is not None, "RA-CT without its statistic"
            out = out * self.ract(attended.statistic).unsqueeze(-1).to(out.dtype)
        if self.reads_gate:
            out = out * self._mlp_gate(ctx).to(out.dtype)
        out = out.transpose(1, 2).flatten(2)
        if self.output_gate is not None:
            out = out * self.output_gate(x)
        side = AttentionSide(heads.key_latent, attended.mean)
        return self.dropout(self.proj(out)), side

    def _latent(self, ctx: BlockContext) -> Tensor | None:
        if not self.reads_latent:
            return None
        assert ctx.mlp_latent is not None, (
            f"block {self.layer} reads mlp_latent, "
            f"which block {self.layer - 1} did not produce"
        )
        return ctx.mlp_latent

    def _mlp_gate(self, ctx: BlockContext) -> Tensor:
        """Factor [B, H, S, 1] from the gates of the block before."""
        assert ctx.mlp_gate is not None, (
            f"block {self.layer} reads mlp_gate, "
            f"which block {self.layer - 1} did not produce"
        )
        return mixed(ctx.mlp_gate, self.gate_mix).transpose(1, 2).unsqueeze(-1)

    def weigh(self, heads: Heads, cache: LayerCache | None = None) -> Attended:
        """Weights times values before the gates on the output, with what they need."""
        term, statistic, rows = None, None, None
        if self.reciprocity is not None:
            term = self.reciprocity(heads.row_q, heads.row_k, cache)
        scale = self.projection.scale
        if self.ract is not None:
            statistic = self.ract.statistic
            if self.ract.at_weights:
                # The gate acts on the logits that its statistic comes from: one call
                # for the statistic of the plain logits, another one with the factor.
                before = AttentionCall(
                    heads.q, heads.k, None, scale, transposed=term, statistic=statistic
                )
                found = attend(before, self.backend).statistic
                assert found is not None, "a call for a statistic gave none"
                statistic, rows = None, self.ract(found)
        call = AttentionCall(
            heads.q,
            heads.k,
            heads.v,
            scale,
            transposed=term,
            statistic=statistic,
            row_scale=rows,
            mean=self.wants_mean,
            kept=self.kept,
            dropout=self.dropout_p if self.training else 0.0,
            qkv=heads.qkv,
        )
        return attend(call, self.backend)
