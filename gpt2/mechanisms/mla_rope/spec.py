"""Settings and costs of latent attention with a decoupled rotary key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gpt2.mechanisms.mla.spec import LatentHeads
from gpt2.mechanisms.spec import FLOAT, Cost, Kept, Tiny, setting

if TYPE_CHECKING:
    from gpt2.settings.schema import Settings


class RopeMLA(LatentHeads):
    title = "Latent attention as in DeepSeek-V2"
    short = "MLA with a rotary key"
    formula = """\
c_j = RMSNorm(x_j W_d)
q_i^h = [W_q^h x_i, RoPE_i(W_qr^h x_i)]
k_j^h = [A_h c_j,   RoPE_j(W_kr x_j)]
v_j^h = U_h c_j
s_ij^h = q_i^h.k_j^h / sqrt(D + D_R)"""
    shapes = (
        "c: [B, T, L], one joint latent of keys and values",
        "q, k: [B, H, T, D + D_R]; the rotary half of k is the same for all heads",
        "A_h, U_h: D x L; W_qr^h, W_kr: D_R x E; RoPE of base 10000",
    )
    known = (
        "RoPE is applied to a key of its own and never to the latent: a rotation "
        "between A_h and the cache would prevent decoding from latents. The cache "
        "holds the normed latent and the rotated key. GPT-2's learned positions "
        "remain."
    )
    sources = ("DeepSeek-V2, arXiv 2405.04434, eqs 14-19", "RoPE, arXiv 2104.09864")
    kind = "mla_rope"
    order = 11
    products = 4

    class Fields:
        joint_latent_dim: int = setting("RA_MLA_JOINT_LATENT_DIM")
        rope_dim: int = setting("RA_MLA_ROPE_DIM")

    widths = ("joint_latent_dim",)

    def problems(self, s: Settings) -> Iterator[tuple[bool, str]]:
        yield (
            s.mechanisms.rope_dim % 2 != 0,
            f"RA_MLA_ROPE_DIM={s.mechanisms.rope_dim} must be even: rotations act on "
            "pairs",
        )

    def tiny(self, x: Fields, model: Any, to: Tiny) -> Mapping[str, Any]:
        return {
            "joint_latent_dim": to.width(x.joint_latent_dim, 4),
            "rope_dim": 2 * to.width(x.rope_dim // 2),
        }

    def key_width(self, s: Settings) -> int:
        return s.model.head_dim + int(s.mechanisms.rope_dim)

    def cost(self, s: Settings) -> Cost:
        x: RopeMLA.Fields = s.mechanisms
        m, inner = s.model, s.model.n_head * s.model.head_dim
        biases = inner + m.n_head * x.rope_dim if m.bias else 0
        return Cost(
            weights=m.n_embd * (inner + (m.n_head + 1) * x.rope_dim)
            + x.joint_latent_dim * (m.n_embd + 2 * inner),
            vectors=x.joint_latent_dim + biases,  # the norm's weights
            cache=x.joint_latent_dim + x.rope_dim,
        )

    def kept_latents(self, s: Settings, by: Kept) -> int:
        """The latent before and after its norm."""
        return (2 * FLOAT + by.number) * int(s.mechanisms.joint_latent_dim) + FLOAT

    def kept_queries_keys_values(self, s: Settings, by: Kept) -> int:
        return by.number * s.model.n_head * (s.model.head_dim + 2 * self.key_width(s))


SPEC = RopeMLA()
