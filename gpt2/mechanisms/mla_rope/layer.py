"""Latent attention with a decoupled rotary key."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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
        input as x: rows of its own give it, so that no number has to be moved.
        """
        heads, rope = self.heads, self.rope_dim
        latent, own = self.down.out_features, self.q.out_features
        rotary = (heads + 1) * rope
        out = F.linear(x, cache.once("rows", self._rows), self._bias(cache))
        widths = [heads * latent, rotary, rotary, latent, self.is_reciprocal * own]
        q, plain, turned, c, row_q = out.split(widths, -1)
        table = cache.place.rows_of(cache.once("angles", lambda: self._table(x.dtype)))
        cos, sin = table.unsqueeze(2).unbind(1)  # [S, 1, R]
        plain, turned = (t.unflatten(-1, (-1, rope)) for t in (plain, turned))
        rotated = torch.addcmul(plain * cos, turned, sin)  # [B, S, H + 1, R]
        q_r, k_r = rotated[:, :, :heads].transpose(1, 2), rotated[:, :, heads]
        c = self.norm(c)
        held = cache.extend("c", torch.cat([c, k_r], -1), 1).unsqueeze(1)
        row_k = None
        if self.is_reciprocal:
            shared = k_r.unsqueeze(1).expand(-1, heads, -1, -1)
            row_k = torch.cat([self.up_k(c), shared], -1)
        return Heads(
            q=torch.cat([split_heads(q, heads), q_r], -1),
            k=held,
            v=held[..., :latent],
            row_q=(
                torch.cat([split_heads(row_q, heads), q_r], -1)
                if self.is_reciprocal
                else None
            ),
            row_k=row_k,
            value_up=self.up_v.per_head(),
        )

    def _rows(self) -> Tensor:
        """Matrix for queries in the latent space, rotary queries and key, the same
        turned by a right angle, the latent and, for RA, queries."""
        rotary = torch.cat([self.q_rope.weight, self.k_rope.weight])
        rows, _ = self.up_k.absorbed(self.q)
        parts = [rows.flatten(0, 1), rotary, self._turned(rotary), self.down.weight]
        return torch.cat([*parts, self.q.weight] if self.is_reciprocal else parts)

    def _bias(self, cache: LayerCache) -> Tensor | None:
        """Bias of ``_rows``; the key and the latent have none."""
        if self.q.bias is None:
            return None

        def make() -> Tensor:
            _, bias = self.up_k.absorbed(self.q)
            assert bias is not None
            none = bias.new_zeros(self.rope_dim + self.down.out_features)
            key, latent = none.split([self.rope_dim, self.down.out_features])
            rotary = torch.cat([self.q_rope.bias, key])
            parts = [bias.flatten(), rotary, self._turned(rotary), latent]
            return torch.cat([*parts, self.q.bias] if self.is_reciprocal else parts)

        return cache.once("bias", make)

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
