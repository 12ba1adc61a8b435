"""Settings and costs of the MLP to attention gate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpt2.mechanisms.spec import FLOAT, Cost, Kept, Mechanism, Tiny, setting

if TYPE_CHECKING:
    from gpt2.settings.schema import Settings


class MlpGate(Mechanism):
    title = "MLP to attention gate"
    short = "the MLP gate"
    formula = """\
this block:  gamma_t = sigmoid(h_t W_1 W_2 + b)
next block:  o_t^h <- (1-a) o_t^h + a gamma_t^h o_t^h
prefix_mean: h_t is replaced by the mean of h_0 ... h_t"""
    shapes = (
        "h: [B, T, M], hidden state of the MLP; gamma: [B, T, H]",
        "W_1: M x G; W_2: G x H; b: H, initially 2.0",
    )
    known = (
        "No published measurement is known. Step 21 has it alone, at the parameters "
        "of step 0."
    )
    order = 60

    class Fields:
        mlp_gate: bool = setting("RA_MLA_MLP_GATE")
        mlp_gate_dim: int = setting("RA_MLA_MLP_GATE_DIM")
        mlp_gate_mix: float = setting("RA_MLA_MLP_GATE_MIX", low=0.0, high=1.0)
        mlp_gate_pool: str = setting(
            "RA_MLA_MLP_GATE_POOL", allowed=("token", "prefix_mean")
        )

    off = {"mlp_gate": False}
    neutral = {"mlp_gate_mix": 0.0}
    hands_on = "mlp_gate"
    paid_width = "mlp_gate_dim"
    own_of_heads = {}
    next_heads = {"mlp.gate.up.weight": 1, "mlp.gate.bias": 1}

    def tiny(self, x: Fields, model: Any, to: Tiny) -> Mapping[str, Any]:
        return {"mlp_gate_dim": to.width(x.mlp_gate_dim)}

    def producer_cost(self, s: Settings) -> Cost:
        x, m = s.mechanisms, s.model
        return Cost(
            weights=x.mlp_gate_dim * (m.mlp_width + m.n_head),
            vectors=m.n_head,
            cache_constant=x.mlp_gate_dim if x.mlp_gate_pool == "prefix_mean" else 0,
        )

    def kept_of_context(self, s: Settings, by: Kept) -> Mapping[str, int]:
        m = s.model
        return {"gated by the MLP": by.number * m.n_head * (m.head_dim + 1)}

    def kept_by_producer(self, s: Settings, by: Kept) -> Mapping[str, int]:
        low = by.number * s.mechanisms.mlp_gate_dim
        return {"gate": low + FLOAT * s.model.n_head}


SPEC = MlpGate()
