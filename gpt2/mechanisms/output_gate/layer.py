"""The SDPA output gate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpt2.model.parts import AttentionPart
from gpt2.settings.schema import Settings


class OutputGate(AttentionPart):
    """SDPA output gate (arXiv 2505.06708): sigmoid(x W), elementwise per head."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        m = settings.model
        self.gate = nn.Linear(m.n_embd, m.n_head * m.head_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Factor [B, S, H D] from the block's normed input [B, S, E]."""
        return torch.sigmoid(self.gate(x))

    def gate_output(self, out: Tensor, x: Tensor) -> Tensor:
        return out * self(x)


ATTENTION = {"output_gate": OutputGate}
