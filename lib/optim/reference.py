"""Naive float64 training by an optimizer's formula, which certificates compare with.

In numpy, one parameter at a time, with no torch and nothing shared with the code under
test. The formulas are in lib/optim/optimizers/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lib.optim.spec import Formula

Array = np.ndarray
State = dict[str, Any]


def adam_update(g: Array, state: State, t: int, s: Mapping[str, Any]) -> Array:
    """m_hat / (sqrt(v_hat) + eps) after the moments took in g as step t."""
    state["m"] = s["beta1"] * state.get("m", 0.0) + (1 - s["beta1"]) * g
    state["v"] = s["beta2"] * state.get("v", 0.0) + (1 - s["beta2"]) * g * g
    second = state["v"]
    if s.get("amsgrad"):
        second = state["vmax"] = np.maximum(state.get("vmax", 0.0), state["v"])
    m_hat = state["m"] / (1 - s["beta1"] ** t)
    v_hat = second / (1 - s["beta2"] ** t)
    result: Array = m_hat / (np.sqrt(v_hat) + s["eps"])
    return result


def run(
    formula: Formula,
    weights: Mapping[str, Array],
    gradients: Callable[[int], Mapping[str, Array]],
    rates: Callable[[int], float],
    settings: Mapping[str, Mapping[str, Any]],
    updates: int,
) -> list[dict[str, Array]]:
    """Weights after each of `updates` updates; `settings` per parameter."""
    current = {key: np.array(value, dtype=np.float64) for key, value in weights.items()}
    states: dict[str, State] = {key: {} for key in weights}
    history = []
    for n in range(1, updates + 1):
        gradient = gradients(n)
        current = {
            key: formula(
                w,
                np.array(gradient[key], dtype=np.float64),
                states[key],
                n,
                {**settings[key], "lr": rates(n)},
            )
            for key, w in current.items()
        }
        history.append(current)
    return history
