"""Adam with its L2 penalty: torch's own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from lib.optim.spec import OptimizerSpec

if TYPE_CHECKING:
    from lib.optim.spec import Array, Group, OptimConfig, OptimizerLike, State


def build(
    groups: list[Group], config: OptimConfig, embeddings: Collection[str]
) -> OptimizerLike:
    """Adam (Kingma & Ba); its decay is an L2 penalty, g <- g + decay w.

    Adam divides that penalty by sqrt(v) like any gradient, so that the same decay has
    another effect than in AdamW. Without decay the two are the same.
    """
    from lib.optim.eager import fused

    return fused("Adam", groups, **config.adam)


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
    build=build,
    formula=formula,
    reads=("beta1", "beta2", "eps"),
    decayed=decayed,
    decay_updates=1,
    lacks_moments="",
    kept=2,
    place=2,
)
