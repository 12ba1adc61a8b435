"""Latent attention with a decoupled rotary key."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gpt2.mechanisms.mla.layer import LatentProjection, Up
from gpt2.model.context import LayerCache
from gpt2.model.parts import Heads, split_heads
from gpt2.settings.schema import Settings


class RopeLatent(LatentProjection):
    """DeepSeek-V2's form: a joint normed latent and a decoupled rotary key.

    q = [q^C, q^R], k = [k^C, k^R] with k^R shared by the heads, scale
    (D + D_R)^-1/2 (eqs 14-19). The learned positions of GPT-2 stay, so that
    the step differs from plain MLA in the attention alone.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        m, x = settings.model, settings.mechanisms
        self.heads, self.head_dim, self.rope_dim = m.n_head, m.head_dim, x.rope_dim
        self.scale = (m.head_dim + x.rope_dim) ** -0.5
        self.q = nn.Linear(m.n_embd, m.n_head * m.head_dim, bias=m.bias)
        self.q_rope = nn.Linear(m.n_embd, m.n_head * x.rope_dim, bias=m.bias)
        self.k_rope = nn.Linear(m.n_embd, x.rope_dim, bias=False)
        self.down = nn.Linear(m.n_embd, x.joint_latent_dim, bias=False)
        self.norm = nn.RMSNorm(x.joint_latent_dim, eps=1e-6)
        self.up_k = Up(x.joint_latent_dim, m.n_head, m.head_dim, False)
        self.up_v = Up(x.joint_latent_dim, m.n_head, m.head_dim, False)
        angles = rope_angles(m.block_size, x.rope_dim)
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)

    def forward(
        self,
        x: Tensor,
        *,
        latent: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Heads:
        assert latent is None, "latent reciprocity is defined for plain MLA"
        if cache is not None and not cache.place.is_empty:
            return self._decode(x, cache)
        layers = self.q, self.q_rope, self.k_rope, self.down
        q_c, q_r, k_r, c = self._read(x, *layers)
        c = self.norm(c.contiguous())  # a copy: the norm keeps what it reads
        q_c = split_heads(q_c, self.heads)
        q_r = self._rotate(split_heads(q_r, self.heads))
        k_r = self._rotate(k_r.unsqueeze(1))
        if cache is not None:
            cache.extend("c", torch.cat([c, k_r[:, 0].to(c.dtype)], -1), 1)
        q = torch.cat([q_c, q_r], -1)
        k = torch.cat([self.up_k(c), k_r.expand(-1, self.heads, -1, -1)], -1)
        return Heads(q, k, self.up_v(c), q, k)

    def _rotate(self, x: Tensor) -> Tensor:
        """Rotation of x [B, H, S, R] by the angles of positions 0 to S - 1."""
        rows = slice(x.shape[2])
        cos, sin = self.cosine[rows].to(x.dtype), self.sine[rows].to(x.dtype)
        even, odd = x.chunk(2, -1)
        return torch.cat([even * cos - odd * sin, even * sin + odd * cos], -1)

    def _decode(self, x: Tensor, cache: LayerCache) -> Heads:
        """Queries in the latent space and the latents of all tokens so far.

        A rotation is x cos + x' sin with x' = [-odd, even], which is as linear in the
        input as x: rows of its own give it, so that no number has to be moved. Heads
        and key are rotated in place, next to what has no position.
        """
        heads, rope, latent = self.heads, self.rope_dim, self.down.out_features
        width = (heads + 1) * (latent + rope)
        end = width + (heads + 1) * rope
        out = self._absorbed(x, cache)
        parts = out[..., :width], out[..., width:end]
        both, turned = (part.unflatten(-1, (heads + 1, -1)) for part in parts)
        table = cache.once("angles", lambda: self._table(x.dtype))
        angles = cache.place.shared("angles", lambda place: place.rows_of(table))
        cos, sin = angles.unsqueeze(2).unbind(1)  # [S, 1, R]
        rotary = both[..., latent:]
        rotary.mul_(cos).addcmul_(turned, sin)
        q, q_r = (t[:, :, :heads].transpose(1, 2) for t in (both, rotary))
        c, k_r = self.norm(both[:, :, heads, :latent]), rotary[:, :, heads]
        held = cache.extend("c", torch.cat([c, k_r], -1), 1).unsqueeze(1)
        row_k = None
        if self.is_reciprocal:
            shared = k_r.unsqueeze(1).expand(-1, heads, -1, -1)
            row_k = torch.cat([self.up_k(c), shared], -1)
        return Heads(
            q=q,
            k=held,
            v=held[..., :latent],
            row_q=(
                torch.cat([split_heads(out[..., end:], heads), q_r], -1)
                if self.is_reciprocal
                else None
            ),
            row_k=row_k,
            value_up=self.up_v.per_head(),
        )

    def _rows(self) -> Tensor:
        """Matrix for queries in the latent space and their rotary part, by head, the
        latent and the rotary key, all rotary rows turned by a right angle and, for RA,
        queries."""
        rows, _ = self.up_k.absorbed(self.q)
        key = self.down.weight, self.k_rope.weight
        return self._joined(rows, self.q_rope.weight, key, self.q.weight)

    def _bias(self) -> Tensor:
        """The key and the latent have none."""
        _, bias = self.up_k.absorbed(self.q)
        assert bias is not None
        none = bias.new_zeros(self.down.out_features + self.rope_dim)
        key = none.split([self.down.out_features, self.rope_dim])
        return self._joined(bias, self.q_rope.bias, key, self.q.bias)

    def _joined(
        self, rows: Tensor, q_rope: Tensor, key: Sequence[Tensor], own: Tensor
    ) -> Tensor:
        """Rows [H, L, ...], [H R, ...], [L, ...] and [R, ...], and RA's, as one."""
        rotary = q_rope.unflatten(0, (self.heads, -1))
        by_head = torch.cat([rows, rotary], 1).flatten(0, 1)
        parts = [by_head, *key, self._turned(torch.cat([q_rope, key[1]]))]
        return torch.cat([*parts, own] if self.is_reciprocal else parts)

    def _turned(self, rows: Tensor) -> Tensor:
        """[-odd, even] of rows [(H + 1) R, ...] that give [even, odd] of each head."""
        even, odd = rows.unflatten(0, (-1, 2, self.rope_dim // 2)).unbind(1)
        return torch.stack([-odd, even], 1).flatten(0, 2)

    def _table(self, dtype: torch.dtype) -> Tensor:
        """Cosines and sines for both halves, [T, 2, R]."""
        pair = torch.stack([self.cosine, self.sine], 1)
        return torch.cat([pair, pair], -1).to(dtype)


def rope_angles(length: int, width: int) -> Tensor:
    """Rotary angles [length, width / 2], base 10000 (arXiv 2104.09864)."""
    rates = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.outer(torch.arange(length, dtype=torch.float64), rates).float()


PROJECTION = RopeLatent
