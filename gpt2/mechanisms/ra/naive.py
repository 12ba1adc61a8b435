"""Formula of RA."""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2.model.reference.formula import BlockFormula


class RaFormula(BlockFormula):
    """q_i.k_j + alpha_h [i - j <= W] q_j.k_i; W = 0: no band."""

    def scores(self, scores: Tensor, q: Tensor, k: Tensor) -> Tensor:
        back = k @ q.mT
        if self.x.ra_window:
            place = torch.arange(q.shape[1], device=q.device)
            back = back * (place[:, None] - place <= self.x.ra_window)
        alpha: Tensor | float = self.x.ra_alpha
        if self.x.ra_learned_alpha:
            alpha = self.get("attn.reciprocity.alpha")[:, None, None]
        return scores + alpha * back


FORMULA = RaFormula
