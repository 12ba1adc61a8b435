"""Settings and costs of the cross-token MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpt2.mechanisms.needs import few_kept
from gpt2.mechanisms.spec import FLOAT, Cost, Kept, Mechanism, Reads, Tiny, setting

if TYPE_CHECKING:
    from gpt2.settings.schema import Settings

BOOL, INDEX = 1, 4  # bytes of a mask's number, of a column's


class CrossToken(Mechanism):
    title = "Cross-token MLP"
    short = "the cross-token MLP"
    formula = """\
m_ij = mean over heads of this block's p_ij, before dropout
w_ij = m_ij where it is kept, else 0; renormalised: w_ij / sum_j w_ij
c_i  = sum_j w_ij h_j
h_i <- h_i + a (c_i V) U
topk keeps the k largest m_ij of row i
rms  keeps m_ij >= tau sqrt(sum_j m_ij^2 / (i+1)),  i from 0"""
    shapes = (
        "h, c: [B, T, M], hidden state of the MLP",
        "m, w: [B, T, T]",
        "V: M x R, U: R x M",
    )
    known = (
        "No published measurement is known. Step 22 has it alone, at the parameters "
        "of step 0."
    )
    order = 50

    class Fields:
        cross_token: bool = setting("RA_MLA_CROSS_TOKEN")
        cross_rank: int = setting("RA_MLA_CROSS_RANK")
        cross_mix: float = setting("RA_MLA_CROSS_MIX", low=0.0, high=1.0)
        cross_select: str = setting(
            "RA_MLA_CROSS_SELECT", allowed=("topk", "rms", "none")
        )
        cross_topk: int = setting("RA_MLA_CROSS_TOPK")
        cross_tau: float = setting("RA_MLA_CROSS_TAU", above=0.0, high=1.0)
        cross_renorm: bool = setting("RA_MLA_CROSS_RENORM")

    off = {"cross_token": False}
    neutral = {"cross_mix": 0.0}
    reads = (
        Reads(
            "has a cross-token MLP that keeps the largest weights",
            ("cross_topk",),
            {"cross_select": "topk"},
        ),
        Reads(
            "has a cross-token MLP that keeps weights by their rms",
            ("cross_tau",),
            {"cross_select": "rms"},
        ),
    )
    paid_width = "cross_rank"
    lengths = ("cross_topk",)

    def heads_refusal(self, s: Settings) -> str:
        return (
            "RA_MLA_CROSS_TOKEN=y reads the mean over all heads' weights, removed "
            "ones too"
        )

    def tiny(self, x: Fields, model: Any, to: Tiny) -> Mapping[str, Any]:
        return {
            "cross_rank": to.width(x.cross_rank),
            "cross_topk": to.length(x.cross_topk),
        }

    def attention(self, s: Settings) -> Mapping[str, Any]:
        x: CrossToken.Fields = s.mechanisms
        kept = x.cross_topk if x.cross_select == "topk" else 0
        return {"mean": True, "kept": kept}

    def cost(self, s: Settings) -> Cost:
        x, m = s.mechanisms, s.model
        return Cost(
            weights=2 * m.mlp_width * x.cross_rank,
            flops=x.cross_rank * (2 * m.mlp_width + m.block_size),
            cache=x.cross_rank,
        )

    def kept(self, s: Settings, by: Kept) -> Mapping[str, int]:
        """Hidden states before and after, which the kernels' path does without; the
        chosen weights [T, T], of which those kernels keep a few of each row; and their
        sums."""
        x: CrossToken.Fields = s.mechanisms
        m, c = s.model, by.number
        if by.path == "triton":
            few = few_kept(by.needs.kept, m.block_size, by.needs.averages_heads)
            row = FLOAT if x.cross_renorm else 0
            if few:  # columns and values; divided, these and their sum are there twice
                row += row + few * (INDEX + FLOAT + row)
            wide = 2 * x.cross_rank + (0 if few else m.block_size)
            return {"cross-token": c * wide + row}
        matrices, row = c, 0
        if x.cross_select == "topk" and x.cross_topk < m.block_size:
            matrices += BOOL
        elif x.cross_select == "rms":
            matrices += 2 * FLOAT
            row += FLOAT
        if x.cross_renorm:
            matrices += FLOAT
            row += 2 * FLOAT
        hidden = c * (m.mlp_width + 2 * x.cross_rank)
        return {"cross-token": hidden + m.block_size * matrices + row}


SPEC = CrossToken()
