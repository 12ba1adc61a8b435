"""Settings and costs of multi-head latent attention (MLA)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpt2.mechanisms.spec import Cost, Kept, Projection, Tiny, setting

if TYPE_CHECKING:
    from gpt2.settings.schema import Settings

# Rows of other widths torch.compile writes with gaps on a GPU, and then a bias is
# copied to each of them before the product. 128 bytes of a 16-bit type.
EVEN = 64


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
    formula = """\
c^K_j = x_j W_dk,  c^V_j = x_j W_dv
k_j^h = A_h c^K_j, v_j^h = U_h c^V_j
s_ij^h = q_i^h.k_j^h / sqrt(D) = (A_h^T q_i^h).c^K_j / sqrt(D)"""
    shapes = (
        "x: [B, T, E], input of the block; c^K, c^V: [B, T, L], shared by all heads",
        "W_dk, W_dv: E x L; A_h, U_h: D x L, one per head or one for all",
    )
    known = (
        "With L = E it can represent multi-head attention exactly, which a test "
        "checks to 1e-5 in fp32: hence the scale sqrt(D), as in DeepSeek-V2. The "
        "second form of s is how it decodes: the cache holds latents, not keys. "
        "Unlike DeepSeek-V2's, it has two latents, no norm and no rotary key; "
        "positions are GPT-2's learned embeddings. MLA with a rotary key is a "
        "mechanism of its own."
    )
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
        """Numbers kept for both latents and the columns of zeros next to them: queries
        and latents are views of one product's rows, as wide as a multiple of EVEN."""
        inner, latents = s.model.n_head * s.model.head_dim, 2 * s.mechanisms.latent_dim
        apart = s.resources.attention_backend == "reference"
        return by.number * (latents + (0 if apart else -(inner + latents) % EVEN))

    def kept_queries_keys_values(self, s: Settings, by: Kept) -> int:
        x: MLA.Fields = s.mechanisms
        m, inner = s.model, s.model.n_head * s.model.head_dim
        ups = (m.head_dim if one else inner for one in (x.mla_shared_k, x.mla_shared_v))
        return by.number * (inner + sum(ups))


SPEC = MLA()
