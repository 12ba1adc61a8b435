"""Adam (Kingma & Ba); its decay is an L2 penalty, g <- g + decay w. torch's own.

Adam divides that penalty by sqrt(v) like any gradient, so that the same decay has
another effect than in AdamW. Without decay the two are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lib.optim.spec import OptimizerSpec, from_torch

if TYPE_CHECKING:
    from lib.optim.spec import Array, OptimConfig, State


def formula(w: Array, g: Array, state: State, n: int, s: Mapping[str, Any]) -> Array:
    """Kingma & Ba, arXiv 1412.6980; g includes the decay."""
    from lib.optim.reference import adam_update

    return w - s["lr"] * adam_update(g + s["decay"] * w, state, n, s)


def decayed(w: Array, lr: float, decay: float, n: int, config: OptimConfig) -> Array:
    """The first update from w: both moments, corrected for bias, are the penalty's."""
    penalty = decay * w
    return w - lr * penalty / (abs(penalty) + config.eps)


SPEC = OptimizerSpec(
    name="adam",
    summary="Adam with L2 penalty",
    build=from_torch("Adam", "betas", "eps"),
    formula=formula,
    reads=("beta1", "beta2", "eps"),
    decayed=decayed,
    decay_updates=1,
    lacks_moments="",
    kept=2,
    place=2,
)
