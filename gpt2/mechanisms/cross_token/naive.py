"""Formula of the cross-token MLP."""

from __future__ import annotations

from torch import Tensor

from gpt2.model.reference.formula import BlockFormula, visible


class CrossTokenFormula(BlockFormula):
    """h_i + a (c_i V) U with c_i = sum_j w_ij h_j over kept mean weights w."""

    def hidden(self, h: Tensor, weights: Tensor, key_latent: Tensor | None) -> Tensor:
        low = self.kept(weights.mean(0)) @ h @ self.get("mlp.cross.down.weight").T
        return h + self.x.cross_mix * (low @ self.get("mlp.cross.up.weight").T)

    def kept(self, mean: Tensor) -> Tensor:
        """Weights [T, T] of the heads' mean weights."""
        kept = mean
        if self.x.cross_select == "topk":
            last = min(self.x.cross_topk, len(mean)) - 1
            least = mean.sort(-1, descending=True).values[:, last : last + 1]
            kept = mean * (mean >= least)
        elif self.x.cross_select == "rms":
            squares = mean.pow(2).sum(-1) / visible(mean)
            kept = mean * (mean >= self.x.cross_tau * squares.sqrt()[:, None])
        return kept / kept.sum(-1, keepdim=True) if self.x.cross_renorm else kept


FORMULA = CrossTokenFormula
