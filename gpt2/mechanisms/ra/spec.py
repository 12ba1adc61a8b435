"""Settings and costs of reciprocal attention (RA)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpt2.mechanisms import projection_of
from gpt2.mechanisms.needs import WHOLE_CONTEXT
from gpt2.mechanisms.spec import Cost, Mechanism, Tiny, setting

if TYPE_CHECKING:
    from gpt2.settings.schema import Settings


class RA(Mechanism):
    title = "Reciprocal attention"
    short = "RA"
    formula = """\
s_ij = (q_i.k_j + alpha [i-j <= W] q_j.k_i) / sqrt(D)  for j <= i
on MLA: the second product is (A_h^T q_j).c^K_i"""
    shapes = (
        "q, k: [B, H, T, D]; s: [B, H, T, T]",
        "alpha: one number, or one per head if it is learned",
    )
    known = (
        "It is causal, since q_j belongs to an earlier token and k_i to the current "
        "one. In a later study its authors found no variant that beat its paired "
        "baseline. Swapping q and k everywhere would only relabel the baseline; the "
        "certificates use unequal weights for them."
    )
    order = 20

    class Fields:
        ra: bool = setting("RA_MLA_RA")
        ra_window: int = setting("RA_MLA_RA_WINDOW")
        ra_alpha: float = setting("RA_MLA_RA_ALPHA", low=-4.0, high=4.0)
        ra_learned_alpha: bool = setting("RA_MLA_RA_LEARNED_ALPHA")

    off = {"ra": False}
    plain = {"ra_learned_alpha": False}
    neutral = {"ra_alpha": 0.0}
    neutral_weights = {"attn.reciprocity.alpha": 0.0}
    lengths = ("ra_window",)
    whole = {"ra_window": WHOLE_CONTEXT}
    own_of_heads = {"attn.reciprocity.alpha": 1}

    def tiny(self, x: Fields, model: Any, to: Tiny) -> Mapping[str, Any]:
        if not WHOLE_CONTEXT < x.ra_window < model.block_size - 1:
            return {}
        return {"ra_window": max(2, min(x.ra_window, to.block_size // 3))}

    def attention(self, s: Settings) -> Mapping[str, Any]:
        x: RA.Fields = s.mechanisms
        return {"window": x.ra_window, "learned": x.ra_learned_alpha}

    def cost(self, s: Settings) -> Cost:
        x: RA.Fields = s.mechanisms
        query = s.model.n_head * projection_of(s).key_width(s)
        is_whole = x.ra_window == WHOLE_CONTEXT
        return Cost(
            vectors=s.model.n_head if x.ra_learned_alpha else 0,
            flops=band(s) * query,
            cache=query if is_whole else 0,
            # The queries that the band still reaches.
            cache_constant=0 if is_whole else band(s) * query,
        )


def band(s: Settings) -> int:
    """Keys for which one query has a transposed score: the window and itself."""
    window, length = s.mechanisms.ra_window, s.model.block_size
    return length if window == WHOLE_CONTEXT else min(window + 1, length)


SPEC = RA()
