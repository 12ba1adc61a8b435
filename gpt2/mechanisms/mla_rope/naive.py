"""Formula of latent attention with a decoupled rotary key."""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2.model.reference.formula import BlockFormula, Projected


class RopeMlaFormula(BlockFormula):
    """q = [q^C, q^R], k = [U^K c, k^R], v = U^V c with c the normed joint latent and
    k^R the same for all heads (DeepSeek-V2, eqs 14-19)."""

    def projected(self, x: Tensor, latent: Tensor | None) -> Projected:
        heads = self.model.n_head
        c = self.linear("attn.projection.down", x)
        root = (c.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        c = c / root * self.get("attn.projection.norm.weight")
        turned = rotated(self.linear("attn.projection.k_rope", x))
        k = torch.cat([self.each("up_k.up", c, heads), turned.repeat(heads, 1, 1)], -1)
        rotary = rotated(self.each("q_rope", x, heads))
        q = torch.cat([self.each("q", x, heads), rotary], -1)
        return Projected(q, k, self.each("up_v.up", c, heads))


def rotated(x: Tensor) -> Tensor:
    """Rotary positions [..., T, R]: dimension i turns with i + R / 2, by base 10000
    (arXiv 2104.09864)."""
    half = x.shape[-1] // 2
    place = torch.arange(x.shape[-2], dtype=torch.float64)[:, None]
    rates = 10000 ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = (place * rates).float()  # the model's tables are in fp32, from a CPU
    cos, sin = angle.cos().to(x), angle.sin().to(x)
    one, two = x[..., :half], x[..., half:]
    return torch.cat([one * cos - two * sin, one * sin + two * cos], -1)


FORMULA = RopeMlaFormula
