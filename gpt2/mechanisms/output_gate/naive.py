"""Formula of the SDPA output gate."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gpt2.model.reference.formula import BlockFormula


class OutputGateFormula(BlockFormula):
    """o * sigmoid(x W), a number for each of the heads' outputs."""

    def outputs(
        self, outputs: Tensor, weights: Tensor, x: Tensor, ctx: Mapping[str, Tensor]
    ) -> Tensor:
        gate = (x @ self.get("attn.output_gate.gate.weight").T).sigmoid()
        return outputs * torch.stack(gate.chunk(self.model.n_head, -1))


FORMULA = OutputGateFormula
