"""Muon for hidden matrices, AdamW for the rest (lib/optim/muon_adamw.py)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from lib.optim.optimizers import adamw
from lib.optim.spec import OptimizerSpec

if TYPE_CHECKING:
    from lib.optim.spec import Array, Group, OptimConfig, OptimizerLike, State


def build(
    groups: list[Group], config: OptimConfig, embeddings: Collection[str]
) -> OptimizerLike:
    """Muon (Nesterov, five Newton-Schulz steps in bfloat16) with AdamW for the rest."""
    from lib.optim.muon_adamw import muon_adamw

    return muon_adamw(groups, config, embeddings)


def formula(w: Array, g: Array, state: State, n: int, s: Mapping[str, Any]) -> Array:
    """For hidden matrices, scaled as in Liu et al., arXiv 2502.16982; else AdamW."""
    if w.ndim != 2 or s["embedding"]:
        return adamw.formula(w, g, state, n, s)
    mu = s["momentum"]
    state["b"] = mu * state.get("b", 0.0) + (1 - mu) * g
    update = orthogonalised((1 - mu) * g + mu * state["b"])
    rate = s["lr"] * 0.2 * math.sqrt(max(w.shape))
    return w - s["lr"] * s["decay"] * w - rate * update


def orthogonalised(g: Array) -> Array:
    """Five Newton-Schulz steps of the quintic a x + b x^3 + c x^5."""
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / max(math.sqrt((x * x).sum()), 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if g.shape[0] > g.shape[1] else x


SPEC = OptimizerSpec(
    name="muon",
    summary="Muon for hidden matrices, AdamW for the rest",
    build=build,
    formula=formula,
    reads=("beta1", "beta2", "eps", "momentum"),
    lacks_moments="keeps no second moment of hidden matrices",
    is_bfloat16=True,
    kept=2,
    kept_hidden=1,
    place=7,
)
