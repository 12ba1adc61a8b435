"""Multi-head latent attention: keys and values read from small shared latents.

k_j = A_h c^K_j and v_j = U_h c^V_j with c = x W_down. In training keys and
values are made per head. In decoding A_h moves to the query and U_h behind the
sum, so that only the latents are cached and read, once for all heads (DeepSeek-V2,
arXiv 2405.04434); the product of A_h and the query's matrix is made once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.mechanisms import needs_of
from gpt2.mechanisms.mla.spec import EVEN
from gpt2.model.backends.call import platform_of_tensor
from gpt2.model.context import LayerCache
from gpt2.model.parts import Heads, Projection, split_heads
from gpt2.settings.schema import Resources, Settings


def at_once(
    x: Tensor, layers: Sequence[nn.Linear], even: int = 1
) -> tuple[Tensor, ...]:
    """Outputs of several layers for x [B, S, E], with one product over all their rows,
    and one for the gradient of x; rows of zeros make its width a multiple of ``even``.

    The results are views of one tensor: keeping one for the backward pass keeps all.
    """
    widths = [layer.out_features for layer in layers]
    rows: list[Tensor] = [layer.weight for layer in layers]
    biases: list[Tensor] = [
        weight.new_zeros(len(weight)) if layer.bias is None else layer.bias
        for layer, weight in zip(layers, rows, strict=True)
    ]
    some = any(layer.bias is not None for layer in layers)
    if spare := -sum(widths) % even:
        rows.append(rows[0].new_zeros(spare, x.shape[-1]))
        biases.append(rows[0].new_zeros(spare))
    out = F.linear(x, torch.cat(rows), torch.cat(biases) if some else None)
    return out.split([*widths, spare], -1)[: len(widths)]


class LatentProjection(Projection):
    """Base of projections of one input for several readers, queries among them."""

    q: nn.Linear

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.is_reciprocal = needs_of(settings).window is not None
        self.use_kernels(settings.resources)

    def use_kernels(self, resources: Resources) -> None:
        """Take each product by itself from now on, or several at once."""
        self.literal = resources.attention_backend == "reference"

    def _read(self, x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
        """Outputs of several layers for x [B, S, E], with one product."""
        if self.literal:
            return tuple(layer(x) for layer in layers)
        return at_once(x, layers, EVEN if platform_of_tensor(x).triton else 1)

    def _absorbed(self, x: Tensor, cache: LayerCache) -> Tensor:
        """All that decoding reads of x [B, S, E], by a matrix that is made once."""
        bias = None if self.q.bias is None else cache.once("bias", self._bias)
        return F.linear(x, cache.once("rows", self._rows), bias)

    def _rows(self) -> Tensor:
        """Matrix of ``_absorbed``, in which A_h is part of the queries' rows."""
        raise NotImplementedError

    def _bias(self) -> Tensor:
        """Bias of ``_rows``, for queries that have one."""
        raise NotImplementedError


class Up(nn.Module):
    """A_h or U_h: from a latent to D numbers a head, or the same for all."""

    def __init__(self, latent: int, heads: int, head_dim: int, shared: bool) -> None:
        super().__init__()
        self.heads, self.shared = heads, shared
        copies = 1 if shared else heads
        self.up = nn.Linear(latent, copies * head_dim, bias=False)

    def forward(self, c: Tensor) -> Tensor:
        """[B, S, L] -> [B, H, S, D]."""
        return self.split(self.up(c))

    def split(self, rows: Tensor) -> Tensor:
        """The layer's numbers [B, S, H D], or D shared by all heads -> [B, H, S, D]."""
        out = split_heads(rows, 1 if self.shared else self.heads)
        return out.expand(-1, self.heads, -1, -1)

    def per_head(self) -> Tensor:
        """The matrices [H, D, L]."""
        copies = self.up.weight.unflatten(0, (1 if self.shared else self.heads, -1))
        return copies.expand(self.heads, -1, -1)

    def absorbed(self, q: nn.Linear) -> tuple[Tensor, Tensor | None]:
        """Weight [H, L, E] and bias [H, L] of queries in the latent space, which are
        A_h^T q^h for a layer that gives q."""
        ups, weight = self.per_head(), q.weight.unflatten(0, (self.heads, -1))
        rows = torch.einsum("hdl,hde->hle", ups, weight)
        if q.bias is None:
            return rows, None
        bias = q.bias.unflatten(0, (self.heads, -1))
        return rows, torch.einsum("hdl,hd->hl", ups, bias)


class Latent(LatentProjection):
    """One latent for keys and one for values; positions as in GPT-2."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        m, x = settings.model, settings.mechanisms
        self.heads, self.scale = m.n_head, m.head_dim**-0.5
        self.q = nn.Linear(m.n_embd, m.n_head * m.head_dim, bias=m.bias)
        self.down_k = nn.Linear(m.n_embd, x.latent_dim, bias=False)
        self.down_v = nn.Linear(m.n_embd, x.latent_dim, bias=False)
        self.up_k = Up(x.latent_dim, m.n_head, m.head_dim, x.mla_shared_k)
        self.up_v = Up(x.latent_dim, m.n_head, m.head_dim, x.mla_shared_v)

    def forward(
        self,
        x: Tensor,
        *,
        latent: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Heads:
        if cache is not None and not cache.place.is_empty:
            return self._decode(x, latent, cache)
        q, c_k, c_v = self._read(x, self.q, self.down_k, self.down_v)
        q = split_heads(q, self.heads)
        if latent is not None:
            c_k = c_k + latent
        if cache is not None:
            cache.extend("c", torch.stack([c_k, c_v], 1), 2)
        k = self.up_k(c_k)
        return Heads(q, k, self.up_v(c_v), q, k, key_latent=c_k)

    def _decode(self, x: Tensor, latent: Tensor | None, cache: LayerCache) -> Heads:
        """Queries in the latent space and the latents of all tokens so far."""
        latents, keys = self.down_k.out_features, self.up_k.up.out_features
        own = [self.q.out_features, keys] if self.is_reciprocal else []
        widths = [self.heads * latents, 2 * latents, *own]
        q, c, *rows = self._absorbed(x, cache).split(widths, -1)
        c = c.unflatten(-1, (2, -1)).transpose(1, 2)  # [B, 2, S, L]
        if latent is not None:
            c[:, 0].add_(latent)  # in place: nothing else reads it
        held = cache.extend("c", c, 2)
        row_q = row_k = None
        if rows:
            row_q = split_heads(rows[0], self.heads)
            row_k = self.up_k.split(rows[1])
            row_k = row_k if latent is None else row_k + self.up_k(latent)
        return Heads(
            q=split_heads(q, self.heads),
            k=held[:, :1],
            v=held[:, 1:],
            row_q=row_q,
            row_k=row_k,
            value_up=self.up_v.per_head(),
            key_latent=c[:, 0],
        )

    def _rows(self) -> Tensor:
        """Matrix for queries in the latent space, both latents and, for RA, queries and
        keys."""
        rows, _ = self.up_k.absorbed(self.q)
        parts = [rows.flatten(0, 1), self.down_k.weight, self.down_v.weight]
        if self.is_reciprocal:
            parts += [self.q.weight, self.up_k.up.weight @ self.down_k.weight]
        return torch.cat(parts)

    def _bias(self) -> Tensor:
        """Latents and keys have none."""
        _, bias = self.up_k.absorbed(self.q)
        assert bias is not None
        parts = [bias.flatten(), bias.new_zeros(2 * self.down_k.out_features)]
        if self.is_reciprocal:
            parts += [self.q.bias, bias.new_zeros(self.up_k.up.out_features)]
        return torch.cat(parts)


PROJECTION = Latent
