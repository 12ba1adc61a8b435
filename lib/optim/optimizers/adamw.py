"""AdamW (Loshchilov & Hutter): w <- w (1 - lr decay), then Adam's update; torch's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lib.optim.spec import OptimizerSpec, from_torch

if TYPE_CHECKING:
    from lib.optim.spec import Array, State


def formula(w: Array, g: Array, state: State, n: int, s: Mapping[str, Any]) -> Array:
    """Loshchilov & Hutter, arXiv 1711.05101: the decay is decoupled."""
    from lib.optim.reference import adam_update

    update = adam_update(g, state, n, s)
    return w - s["lr"] * s["decay"] * w - s["lr"] * update


SPEC = OptimizerSpec(
    name="adamw",
    summary="AdamW",
    build=from_torch("AdamW", "betas", "eps"),
    formula=formula,
    reads=("beta1", "beta2", "eps"),
    lacks_moments="",
    kept=2,
    place=3,
)
