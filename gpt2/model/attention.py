"""Causal self-attention: projection, scores, gates, output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from gpt2.mechanisms import added, module_of, needs_of, projection_of
from gpt2.mechanisms.needs import Statistic
from gpt2.mechanisms.spec import MULTI_HEAD
from gpt2.model.backends.call import Attended, AttentionCall, Transposed
from gpt2.model.backends.decode import has_kernel
from gpt2.model.backends.registry import attend
from gpt2.model.context import BlockContext, LayerCache
from gpt2.model.parts import AttentionPart, AttentionSide, Heads, Projection
from gpt2.settings.schema import Resources, Settings
from lib.kernels.rows import HeadGate

UNGATED = AttentionPart.row_factor, AttentionPart.gate_heads


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
    ) -> Heads:
        assert latent is None, "multi-head attention has no latent to add to"
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        if cache is not None:
            new = qkv[:, :, 1:].permute(0, 3, 2, 1, 4)  # [B, H, 2, S, D]: one write
            held = cache.extend("kv", new, 3)
            if not cache.place.is_empty:
                return Heads(q, held[:, :, 0], held[:, :, 1], q, k)
        return Heads(q, k, v, q, k, qkv=qkv)


def make_projection(settings: Settings) -> Projection:
    """The projection that the settings choose."""
    spec = projection_of(settings)
    if spec is MULTI_HEAD:
        return MultiHead(settings)
    projection: Projection = module_of(spec.name, "layer").PROJECTION(settings)
    return projection


class CausalAttention(nn.Module):
    """Attention of one block with the mechanisms its settings switch on."""

    def __init__(self, settings: Settings, layer: int) -> None:
        super().__init__()
        m = settings.model
        self.layer, self.heads = layer, m.n_head
        self.dropout_p = m.dropout
        self.needs = needs_of(settings)
        self.projection = make_projection(settings)
        self.part_names: list[str] = []
        for mechanism in added(settings):
            parts = getattr(module_of(mechanism.name, "layer"), "ATTENTION", {})
            for name, part in parts.items():
                if layer > 0 or not part.reads:
                    self.add_module(name, part(settings))
                    self.part_names.append(name)
        self.proj = nn.Linear(m.n_head * m.head_dim, m.n_embd, bias=m.bias)
        self.dropout = nn.Dropout(m.dropout)
        self.use_kernels(settings.resources)

    def use_kernels(self, resources: Resources) -> None:
        """Attend by the backend that is named there from now on."""
        self.backend = resources.attention_backend

    def parts(self) -> list[AttentionPart]:
        """Parts added by mechanisms, in the order in which they act."""
        return [getattr(self, name) for name in self.part_names]

    def forward(
        self,
        x: Tensor,
        *,
        ctx: BlockContext,
        cache: LayerCache | None = None,
    ) -> tuple[Tensor, AttentionSide]:
        """x [B, S, E], the block's normed input -> [B, S, E] and the side."""
        given = [self._given(part, ctx) for part in self.parts()]
        pairs = list(zip(self.parts(), given, strict=True))
        latents = (part.latent(tensor) for part, tensor in pairs)
        latent = next((found for found in latents if found is not None), None)
        heads = self.projection(x, latent=latent, cache=cache)
        attended = self.weigh(heads, cache, given)
        out = heads.expand(attended.output)
        for part, tensor in () if attended.gated else pairs:
            out = part.gate_heads(out, attended, tensor)
        out = out.transpose(1, 2).flatten(2)
        for part in self.parts():
            out = part.gate_output(out, x)
        side = AttentionSide(heads.key_latent, attended.mean)
        return self.dropout(self.proj(out)), side

    def _given(self, part: AttentionPart, ctx: BlockContext) -> Tensor | None:
        if not part.reads:
            return None
        assert part.reads in ctx, (
            f"block {self.layer} reads {part.reads}, "
            f"which block {self.layer - 1} did not produce"
        )
        return ctx[part.reads]

    def scored(
        self, heads: Heads, cache: LayerCache | None = None
    ) -> tuple[Heads, Transposed | None]:
        """Queries and keys as the scores take them, and the term added to these."""
        for part in self.parts():
            heads = part.heads(heads)
        terms = (part.score_term(heads, cache) for part in self.parts())
        return heads, next((term for term in terms if term is not None), None)

    def weigh(
        self,
        heads: Heads,
        cache: LayerCache | None = None,
        given: Sequence[Tensor | None] = (),
    ) -> Attended:
        """Weights times values before the gates on the output, with what they need.

        given: for each part, to decode. A kernel that decodes applies all gates itself.
        """
        heads, term = self.scored(heads, cache)
        row = None if cache is None else cache.place.row
        needs, rows = self.needs, None
        base = partial(
            AttentionCall,
            heads.q,
            heads.k,
            scale=self.projection.scale,
            transposed=term,
            row=row,
        )
        whole = partial(
            base,
            v=heads.v,
            mean=needs.mean,
            kept=needs.kept,
            dropout=self.dropout_p if self.training else 0.0,
            qkv=heads.qkv,
        )
        gates = None if row is None else self._gates(given)
        if gates is not None:
            call = whole(statistic=needs.statistic, gates=gates)
            if has_kernel(call):
                return attend(call, self.backend)
        find = partial(self._statistic, base)
        for part in self.parts():
            factor = part.row_factor(find)
            if factor is not None:
                rows = factor if rows is None else rows * factor
        statistic = None if needs.at_weights else needs.statistic
        return attend(whole(statistic=statistic, row_scale=rows), self.backend)

    def _gates(self, given: Sequence[Tensor | None]) -> tuple[HeadGate, ...] | None:
        """Factors on the heads for a kernel; None if a part has others than these."""
        gates = []
        for part, tensor in zip(self.parts(), given, strict=True):
            gate, kind = part.head_gate(tensor), type(part)
            if gate is not None:
                gates.append(gate)
            elif (kind.row_factor, kind.gate_heads) != UNGATED:
                return None
        return tuple(gates)

    def _statistic(
        self, base: Callable[..., AttentionCall], statistic: Statistic
    ) -> Tensor:
        """A statistic [B, H or 1, S] of the weights by the plain logits."""
        found = attend(base(v=None, statistic=statistic), self.backend).statistic
        assert found is not None, "a call for a statistic gave none"
        return found
