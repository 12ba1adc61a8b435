"""Settings and costs of the SDPA output gate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gpt2.mechanisms.spec import Cost, Kept, Mechanism, setting

if TYPE_CHECKING:
    from gpt2.settings.schema import Settings


class OutputGate(Mechanism):
    title = "SDPA output gate"
    short = "the output gate"
    formula = "o <- o * sigmoid(x W_gate), before the output projection"
    shapes = ("o, x W_gate: [B, T, H D], a gate for each element; W_gate: E x (H D)",)
    known = (
        "Its authors find that a head-specific sigmoid gate after attention improves "
        "loss consistently. Of the mechanisms that the authors of reciprocal "
        "attention compared later it is the one that beat its baseline: the control "
        "to beat. As published it has no bias, so that it starts near 0.5 and not, as "
        "the other gates here, nearly open."
    )
    sources = ("Gated attention, arXiv 2505.06708",)
    order = 70

    class Fields:
        output_gate: bool = setting("RA_MLA_OUTPUT_GATE")

    off = {"output_gate": False}
    own_of_heads = {"attn.output_gate.gate.weight": 1}
    input_products = 1

    def cost(self, s: Settings) -> Cost:
        return Cost(weights=s.model.n_embd * s.model.n_head * s.model.head_dim)

    def kept(self, s: Settings, by: Kept) -> Mapping[str, int]:
        return {"output gate": 2 * by.number * s.model.n_head * s.model.head_dim}


SPEC = OutputGate()
