"""Formula of MLA."""

from __future__ import annotations

from torch import Tensor

from gpt2.model.reference.formula import BlockFormula, Projected


class MlaFormula(BlockFormula):
    """k_j = A_h c^K_j, v_j = U_h c^V_j with c = x W_down; A and U may be shared."""

    def projected(self, x: Tensor, latent: Tensor | None) -> Projected:
        heads = self.model.n_head
        c_k = self.linear("attn.projection.down_k", x)
        c_v = self.linear("attn.projection.down_v", x)
        if latent is not None:
            c_k = c_k + latent
        k = self.each("up_k.up", c_k, 1 if self.x.mla_shared_k else heads)
        v = self.each("up_v.up", c_v, 1 if self.x.mla_shared_v else heads)
        return Projected(self.each("q", x, heads), k, v, c_k)


FORMULA = MlaFormula
