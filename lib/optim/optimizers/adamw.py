"""AdamW: torch's own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from lib.optim.spec import OptimizerSpec

if TYPE_CHECKING:
    from lib.optim.spec import Array, Group, OptimConfig, OptimizerLike, State


def build(
    groups: list[Group], config: OptimConfig, embeddings: Collection[str]
) -> OptimizerLike:
    """AdamW (Loshchilov & Hutter): w <- w (1 - lr decay), then Adam's update."""
    from lib.optim.eager import fused

    return fused("AdamW", groups, **config.adam)


def formula(w: Array, g: Array, state: State, n: int, s: Mapping[str, Any]) -> Array:
    """Loshchilov & Hutter, arXiv 1711.05101: the decay is decoupled."""
    from lib.optim.reference import adam_update

    update = adam_update(g, state, n, s)
    return w - s["lr"] * s["decay"] * w - s["lr"] * update


SPEC = OptimizerSpec(
    name="adamw",
    summary="AdamW",
    build=build,
    formula=formula,
    reads=("beta1", "beta2", "eps"),
    lacks_moments="",
    kept=2,
    place=3,
)
