"""Formula of the MLP to attention gate."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gpt2.model.reference.formula import BlockFormula, visible


class MlpGateFormula(BlockFormula):
    """o^h <- (1-a) o^h + a gamma^h o^h by gamma = sigmoid(h W_1 W_2 + b) [T, H] of the
    block before; h may be the mean over the tokens up to each."""

    def outputs(
        self, outputs: Tensor, weights: Tensor, x: Tensor, ctx: Mapping[str, Tensor]
    ) -> Tensor:
        if "mlp_gate" not in ctx:
            return outputs
        a, gamma = self.x.mlp_gate_mix, ctx["mlp_gate"].T[..., None]
        return (1 - a) * outputs + a * gamma * outputs

    def made(self, h: Tensor) -> Tensor:
        if self.x.mlp_gate_pool == "prefix_mean":
            seen = torch.ones(len(h), len(h), dtype=h.dtype, device=h.device).tril()
            h = seen / visible(h)[:, None] @ h
        low = h @ self.get("mlp.gate.down.weight").T
        return (
            low @ self.get("mlp.gate.up.weight").T + self.get("mlp.gate.bias")
        ).sigmoid()


FORMULA = MlpGateFormula
