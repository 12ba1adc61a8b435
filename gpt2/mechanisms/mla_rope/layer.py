"""Latent attention with a decoupled rotary key."""

from __future__ import annotations

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
        position: int = 0,
    ) -> Heads:
        assert latent is None, "latent reciprocity is defined for plain MLA"
        layers = self.q, self.q_rope, self.k_rope, self.down
        q_c, q_r, k_r, c = self._read(x, cache, *layers)
        c = self.norm(c.contiguous())  # a copy: the norm keeps what it reads
        q_c = split_heads(q_c, self.heads)
        q_r = self._rotate(split_heads(q_r, self.heads), position)
        k_r = self._rotate(k_r.unsqueeze(1), position)
        k_c = self.up_k(c)
        row_q = torch.cat([q_c, q_r], -1)
        row_k = torch.cat([k_c, k_r.expand(-1, self.heads, -1, -1)], -1)
        if cache is None:
            return Heads(row_q, row_k, self.up_v(c), row_q, row_k)
        c_all = cache.extend("c", c, 1).unsqueeze(1)
        k_r_all = cache.extend("k_rope", k_r, 2)
        return Heads(
            q=torch.cat([self.up_k.absorb(q_c), q_r], -1),
            k=torch.cat([c_all, k_r_all], -1),
            v=c_all,
            row_q=row_q,
            row_k=row_k,
            value_up=self.up_v.per_head(),
        )

    def _rotate(self, x: Tensor, position: int) -> Tensor:
        rows = slice(position, position + x.shape[2])
        cos, sin = self.cosine[rows].to(x.dtype), self.sine[rows].to(x.dtype)
        even, odd = x.chunk(2, -1)
        return torch.cat([even * cos - odd * sin, even * sin + odd * cos], -1)


def rope_angles(length: int, width: int) -> Tensor:
    """Rotary angles [length, width / 2], base 10000 (arXiv 2104.09864)."""
    rates = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.outer(torch.arange(length, dtype=torch.float64), rates).float()


PROJECTION = RopeLatent
