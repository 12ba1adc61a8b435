"""Settings and costs of multi-head latent attention (MLA)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpt2.mechanisms.spec import Cost, Kept, Projection, Tiny, setting

if TYPE_CHECKING:
    from gpt2.settings.schema import Settings


class LatentHeads(Projection):
    """Base of projections whose heads share a latent."""

    own_of_heads = None

    def heads_refusal(self, s: Settings) -> str:
        return (
            f"RA_MLA_ATTENTION is {self.kind!r}, whose heads share a latent: it needs "
            "RA_MLA_ATTENTION_MHA=y"
        )


class MLA(LatentHeads):
    title = "Multi-head latent attention"
    short = "MLA"
    formula = "k_j = A_h c^K_j, v_j = U_h c^V_j, c = x W_down; scale sqrt(D)"
    sources = ("DeepSeek-V2, arXiv 2405.04434",)
    kind = "mla"
    order = 10
    products = 3

    class Fields:
        latent_dim: int = setting("RA_MLA_LATENT_DIM")
        mla_shared_k: bool = setting("RA_MLA_SHARED_K")
        mla_shared_v: bool = setting("RA_MLA_SHARED_V")

    widths = ("latent_dim",)

    def tiny(self, x: Fields, model: Any, to: Tiny) -> Mapping[str, Any]:
        return {"latent_dim": to.width(x.latent_dim, max(4, to.heads))}

    def cost(self, s: Settings) -> Cost:
        x: MLA.Fields = s.mechanisms
        m, inner = s.model, s.model.n_head * s.model.head_dim
        ups = (m.head_dim if one else inner for one in (x.mla_shared_k, x.mla_shared_v))
        return Cost(
            weights=m.n_embd * inner + x.latent_dim * (2 * m.n_embd + sum(ups)),
            vectors=inner if m.bias else 0,
            cache=2 * x.latent_dim,
        )

    def kept_latents(self, s: Settings, by: Kept) -> int:
        return 2 * by.number * s.mechanisms.latent_dim

    def kept_queries_keys_values(self, s: Settings, by: Kept) -> int:
        x: MLA.Fields = s.mechanisms
        m, inner = s.model, s.model.n_head * s.model.head_dim
        ups = (m.head_dim if one else inner for one in (x.mla_shared_k, x.mla_shared_v))
        return by.number * (inner + sum(ups))


SPEC = MLA()
