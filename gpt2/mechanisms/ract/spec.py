"""Settings and costs of RA-CT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpt2.mechanisms import needs_of, projection_of
from gpt2.mechanisms.needs import Statistic
from gpt2.mechanisms.ra.spec import band
from gpt2.mechanisms.spec import FLOAT, Cost, Kept, Mechanism, Reads, Tiny, setting

if TYPE_CHECKING:
    from gpt2.settings.schema import Settings


class RACT(Mechanism):
    title = "RA-CT, gating by attention statistics"
    short = "RA-CT"
    formula = """\
g_i^h = sigmoid(scale_h stat_i^h + bias_h)
output:   o_i^h <- (1-a) o_i^h + a g_i^h o_i^h
weights:  s_ij  <- s_ij (1 - a + a g_i^h), then the softmax again
of the weights p of row i over its n = i+1 visible keys (i from 0), stat is
topk:     sum of the k largest p
max:      largest p
entropy:  -sum p ln p / ln n, and 0 for n = 1
rms:      sqrt(sum p^2 / n)"""
    shapes = (
        "p: [B, H, T, T]; stat, g: [B, H, T]",
        "scale, bias: H, initially 1.0 and 2.0",
    )
    known = (
        "No published measurement is known. Statistics are divided by the number of "
        "visible keys and not by the context, or they would depend on later tokens. "
        "A factor of a row after the softmax would be the same as gating the output, "
        "so `weights` acts before it (step 17 against 13)."
    )
    order = 30

    class Fields:
        ract: bool = setting("RA_MLA_RACT")
        ract_statistic: str = setting(
            "RA_MLA_RACT_STATISTIC", allowed=("topk", "max", "entropy", "rms")
        )
        ract_placement: str = setting(
            "RA_MLA_RACT_PLACEMENT", allowed=("output", "weights")
        )
        ract_topk: int = setting("RA_MLA_RACT_TOPK")
        ract_mix: float = setting("RA_MLA_RACT_MIX", low=0.0, high=1.0)
        ract_head_average: bool = setting("RA_MLA_RACT_HEAD_AVERAGE")
        ract_detach: bool = setting("RA_MLA_RACT_DETACH")

    off = {"ract": False}
    neutral = {"ract_mix": 0.0}
    reads = (
        Reads("has RA-CT by the top-k sum", ("ract_topk",), {"ract_statistic": "topk"}),
    )
    lengths = ("ract_topk",)
    own_of_heads = {"attn.ract.scale": 1, "attn.ract.bias": 1}

    def heads_refusal(self, s: Settings) -> str:
        if not s.mechanisms.ract_head_average:
            return ""
        return (
            "RA_MLA_RACT_HEAD_AVERAGE=y gates by the mean over all heads' weights, "
            "removed ones too"
        )

    def tiny(self, x: Fields, model: Any, to: Tiny) -> Mapping[str, Any]:
        return {"ract_topk": to.length(x.ract_topk)}

    def attention(self, s: Settings) -> Mapping[str, Any]:
        x: RACT.Fields = s.mechanisms
        statistic = Statistic(x.ract_statistic, x.ract_topk, x.ract_head_average)
        return {"statistic": statistic, "at_weights": x.ract_placement == "weights"}

    def cost(self, s: Settings) -> Cost:
        scores = self._second_scores(s)
        # A detached statistic passes no gradient to queries and to keys.
        detached = 2 * scores if s.mechanisms.ract_detach else 0
        return Cost(
            vectors=2 * s.model.n_head, flops=scores, flops_without_gradient=detached
        )

    def _second_scores(self, s: Settings) -> int:
        """Scores are made twice for a gate at the weights."""
        if s.mechanisms.ract_placement != "weights":
            return 0
        keys = s.model.block_size + (0 if needs_of(s).window is None else band(s))
        return keys * s.model.n_head * projection_of(s).key_width(s)

    def kept(self, s: Settings, by: Kept) -> Mapping[str, int]:
        heads, inner = s.model.n_head, s.model.n_head * s.model.head_dim
        if s.mechanisms.ract_placement == "weights":
            return {"RA-CT": 2 * FLOAT * heads}
        return {"RA-CT": heads * (FLOAT + by.number) + by.number * inner}


SPEC = RACT()
