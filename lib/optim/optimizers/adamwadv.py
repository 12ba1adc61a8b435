"""AdamW with AMSGrad: torch's own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from lib.optim.spec import OptimizerSpec

if TYPE_CHECKING:
    from lib.optim.spec import Array, Group, OptimConfig, OptimizerLike, State


def build(
    groups: list[Group], config: OptimConfig, embeddings: Collection[str]
) -> OptimizerLike:
    """AdamW with AMSGrad (Reddi et al.): the denominator never shrinks.

    The cosine schedule and the clip at 1.0 that belong to it are in the trainer, for
    all arms.
    """
    from lib.optim.eager import fused

    return fused("AdamW", groups, amsgrad=True, **config.adam)


def formula(w: Array, g: Array, state: State, n: int, s: Mapping[str, Any]) -> Array:
    """Reddi et al., arXiv 1904.09237."""
    from lib.optim.reference import adam_update

    update = adam_update(g, state, n, s, amsgrad=True)
    return w - s["lr"] * s["decay"] * w - s["lr"] * update


SPEC = OptimizerSpec(
    name="adamwadv",
    summary="AdamW with AMSGrad",
    build=build,
    formula=formula,
    reads=("beta1", "beta2", "eps"),
    lacks_moments="",
    kept=3,
    place=4,
)
