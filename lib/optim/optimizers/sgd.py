"""SGD with momentum: b <- mu b + (g + decay w), w <- w - lr b; torch's own.

The decay is an L2 penalty: it passes through the momentum. At constant lr and mu = 0 it
is the decoupled one; otherwise w shrinks by about lr * decay / (1 - mu) per update.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lib.optim.spec import OptimizerSpec, from_torch

if TYPE_CHECKING:
    from lib.optim.spec import Array, OptimConfig, State


def formula(w: Array, g: Array, state: State, n: int, s: Mapping[str, Any]) -> Array:
    """b <- momentum b + g, from b = g; g includes the decay."""
    g = g + s["decay"] * w
    state["b"] = g if n == 1 else s["momentum"] * state["b"] + g
    return w - s["lr"] * state["b"]


def decayed(w: Array, lr: float, decay: float, n: int, config: OptimConfig) -> Array:
    """b <- mu b + decay w, w <- w - lr b is a linear recurrence: a matrix power."""
    import numpy as np

    # (w, b) after one update is this matrix times (w, b) before it.
    mu = config.momentum
    once = np.array([[1.0 - lr * decay, -lr * mu], [decay, mu]])
    return w * np.linalg.matrix_power(once, n)[0, 0]


SPEC = OptimizerSpec(
    name="sgd",
    summary="SGD with momentum",
    build=from_torch("SGD", "momentum"),
    formula=formula,
    reads=("momentum",),
    decayed=decayed,
    kept=1,
    kept_if="momentum",
    place=1,
)
