"""Formula of RA-CT."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gpt2.model.reference.formula import BlockFormula, softmax, visible


class RactFormula(BlockFormula):
    """Factor 1 - a + a sigmoid(scale_h stat + bias_h) on outputs or on logits."""

    def logits(self, scores: Tensor) -> Tensor:
        if self.x.ract_placement != "weights":
            return scores
        return scores * self.factors(softmax(scores))[..., None]

    def outputs(
        self, outputs: Tensor, weights: Tensor, x: Tensor, ctx: Mapping[str, Tensor]
    ) -> Tensor:
        if self.x.ract_placement != "output":
            return outputs
        return outputs * self.factors(weights)[..., None]

    def factors(self, weights: Tensor) -> Tensor:
        """[H, T] of weights [H, T, T]."""
        if self.x.ract_head_average:
            weights = weights.mean(0, keepdim=True)
        stat = row_statistics(weights, self.x.ract_statistic, self.x.ract_topk)
        stat = stat.detach() if self.x.ract_detach else stat
        scale, bias = self.get("attn.ract.scale"), self.get("attn.ract.bias")
        gate = (scale[:, None] * stat + bias[:, None]).sigmoid()
        return 1 - self.x.ract_mix + self.x.ract_mix * gate


def row_statistics(weights: Tensor, kind: str, topk: int) -> Tensor:
    """The statistic [..., T] of each row of weights [..., T, T], 0 ahead of a row."""
    if kind == "topk":
        return weights.sort(-1, descending=True).values[..., :topk].sum(-1)
    if kind == "max":
        return weights.max(-1).values
    if kind == "rms":
        return (weights.pow(2).sum(-1) / visible(weights)).sqrt()
    assert kind == "entropy", kind
    # p ln p is 0 at 0, and its slope there must be finite. A row of one key has ln 1.
    smallest = torch.finfo(weights.dtype).tiny
    nats = -(weights * weights.clamp_min(smallest).log()).sum(-1)
    return nats / visible(weights).clamp_min(2).log()


FORMULA = RactFormula
