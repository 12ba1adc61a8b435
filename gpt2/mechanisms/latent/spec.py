"""Settings and costs of latent reciprocity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from gpt2.mechanisms.spec import FLOAT, Cost, Kept, Mechanism, setting

if TYPE_CHECKING:
    from gpt2.settings.schema import Settings


class Latent(Mechanism):
    title = "Latent reciprocity"
    short = "latent reciprocity"
    formula = """\
this block:  h_i   <- h_i + a up(c^K_i)
next block:  c^K_i <- c^K_i + a down(h_i)
tied_transpose:   up(c) = c W^T,  down(h) = h W
untied:           up(c) = c W_up, down(h) = h W_down
per_head_scalar:  up(c) = (c s_up) P^T,  down(h) = (h P) s_down"""
    shapes = (
        "h: [B, T, M], hidden state of the MLP; c^K: [B, T, L], MLA's key latent",
        "W: M x L; W_up: L x M; W_down: M x L",
        "P: M x L, fixed and orthonormal; s_up, s_down: one scalar for each of H "
        "contiguous chunks of L",
    )
    known = (
        "No published measurement is known. Steps 25 to 27 compare the three forms "
        "with step 9; 25 and 26 have its parameters."
    )
    order = 40

    class Fields:
        latent: str = setting(
            "RA_MLA_LATENT_RECIPROCITY",
            allowed=("none", "tied_transpose", "untied", "per_head_scalar"),
        )
        latent_mix: float = setting("RA_MLA_LATENT_MIX", low=0.0, high=1.0)

    off = {"latent": "none"}
    needs = {"attention": "mla"}  # whose key latent it exchanges
    neutral = {"latent_mix": 0.0}
    hands_on = "mlp_latent"

    def problems(self, s: Settings) -> Iterator[tuple[bool, str]]:
        m, x = s.model, s.mechanisms
        scalars = x.latent == "per_head_scalar"
        yield (
            scalars and x.latent_dim < m.n_head,
            f"per_head_scalar cuts RA_MLA_LATENT_DIM={x.latent_dim} into one chunk "
            f"per head, and there are {m.n_head} heads: widen the latent",
        )
        yield (
            scalars and 0 < m.mlp_width < x.latent_dim,
            f"per_head_scalar projects an MLP of width {m.mlp_width} on orthonormal "
            f"directions, of which RA_MLA_LATENT_DIM={x.latent_dim} are too many: "
            "narrow the latent or widen the MLP",
        )

    def cost(self, s: Settings) -> Cost:
        return self._direction(s, s.mechanisms.latent != "per_head_scalar")

    def producer_cost(self, s: Settings) -> Cost:
        return self._direction(s, s.mechanisms.latent == "untied")

    def _direction(self, s: Settings, has_matrix: bool) -> Cost:
        """One matrix of L x M, the other direction's transposed, or one scalar per head
        with a fixed projection, which gets no gradient."""
        product, scalars = _product(s), s.mechanisms.latent == "per_head_scalar"
        return Cost(
            weights=product if has_matrix else 0,
            vectors=s.model.n_head if scalars else 0,
            flops=product,
            flops_without_gradient=product if scalars else 0,
        )

    def kept(self, s: Settings, by: Kept) -> Mapping[str, int]:
        if s.mechanisms.latent != "per_head_scalar" or by.path != "triton":
            return {}
        # What reads the scaled latent is trained.
        return {"scaled key latent": by.number * s.mechanisms.latent_dim}

    def kept_of_context(self, s: Settings, by: Kept) -> Mapping[str, int]:
        kept, width = {}, s.mechanisms.latent_dim
        if (
            s.resources.attention_backend != "reference"
        ):  # in addition to queries and values
            kept["key latent alone"] = by.number * width
        if s.mechanisms.latent == "per_head_scalar" and by.is_mixed:
            kept["key latent"] = FLOAT * width  # scaled by fp32 numbers
        return kept

    def kept_by_producer(self, s: Settings, by: Kept) -> Mapping[str, int]:
        if s.mechanisms.latent != "per_head_scalar":
            return {}
        return {"latent down": by.number * s.mechanisms.latent_dim}

    def cast_again(self, s: Settings) -> int:
        """A matrix used transposed, and a buffer, are cast at each use."""
        last = s.model.n_layer - 1
        uses = {"tied_transpose": last, "per_head_scalar": s.model.n_layer + last}
        return uses.get(s.mechanisms.latent, 0) * _product(s)


def _product(s: Settings) -> int:
    return s.model.mlp_width * int(s.mechanisms.latent_dim)


SPEC = Latent()
