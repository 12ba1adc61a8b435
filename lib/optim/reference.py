"""Naive float64 optimizers: the truth that certificates hold the fast ones to.

Written from the formulas in numpy, one parameter at a time, with no torch and
nothing shared with the code under test. A rule takes the weight, its gradient,
a dict for its state, the update's number n = 1, 2, ... and its settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Array = np.ndarray
State = dict[str, Any]


def sgd(w: Array, g: Array, state: State, n: int, s: Mapping[str, Any]) -> Array:
    """b <- momentum b + g, from b = g; the decay is in g."""
    g = g + s["decay"] * w
    state["b"] = g if n == 1 else s["momentum"] * state["b"] + g
    return w - s["lr"] * state["b"]


def adam_update(g: Array, state: State, t: int, s: Mapping[str, Any]) -> Array:
    """m_hat / (sqrt(v_hat) + eps) after the moments took in g as step t."""
    state["m"] = s["beta1"] * state.get("m", 0.0) + (1 - s["beta1"]) * g
    state["v"] = s["beta2"] * state.get("v", 0.0) + (1 - s["beta2"]) * g * g
    second = state["v"]
    if s["amsgrad"]:
        second = state["vmax"] = np.maximum(state.get("vmax", 0.0), state["v"])
    m_hat = state["m"] / (1 - s["beta1"] ** t)
    v_hat = second / (1 - s["beta2"] ** t)
    return m_hat / (np.sqrt(v_hat) + s["eps"])


def adam(w: Array, g: Array, state: State, n: int, s: Mapping[str, Any]) -> Array:
    """Kingma & Ba, arXiv 1412.6980; the decay is in g."""
    return w - s["lr"] * adam_update(
        g + s["decay"] * w, state, n, {**s, "amsgrad": False}
    )


def adamw(w: Array, g: Array, state: State, n: int, s: Mapping[str, Any]) -> Array:
    """Loshchilov & Hutter, arXiv 1711.05101: the decay is apart."""
    update = adam_update(g, state, n, {**s, "amsgrad": False})
    return w - s["lr"] * s["decay"] * w - s["lr"] * update


def adamwadv(w: Array, g: Array, state: State, n: int, s: Mapping[str, Any]) -> Array:
    """AdamW with AMSGrad: Reddi et al., arXiv 1904.09237."""
    update = adam_update(g, state, n, {**s, "amsgrad": True})
    return w - s["lr"] * s["decay"] * w - s["lr"] * update


def adamwspam(w: Array, g: Array, state: State, n: int, s: Mapping[str, Any]) -> Array:
    """Huang et al., arXiv 2501.06842; what is ours in it lib/optim/spam.py states."""
    interval, warmup = s["spam_interval"], s["spam_warmup"]
    state["t"] = state.get("t", 0)
    if n % interval == 0:
        state["m"], state["v"] = np.zeros_like(w), np.zeros_like(w)
        if s["spam_reset_counter"]:
            state["t"] = 0
    if n >= 20 and n % interval >= 20:
        limit = s["spam_threshold"] * state["v"]
        g = np.where(g * g > limit, np.sign(g) * np.sqrt(limit), g)
    scale, k = 1.0, n % interval
    if n >= interval and k < warmup:
        scale = 1 - 0.99 * (1 + math.cos(math.pi * k / (warmup + 1))) / 2
    state["t"] += 1
    update = adam_update(g, state, state["t"], {**s, "amsgrad": False})
    return w - s["lr"] * s["decay"] * w - s["lr"] * scale * update


def orthogonalised(g: Array) -> Array:
    """Five Newton-Schulz steps of the quintic a x + b x^3 + c x^5."""
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / max(float(np.linalg.norm(x)), 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def muon(w: Array, g: Array, state: State, n: int, s: Mapping[str, Any]) -> Array:
    """Of hidden matrices, scaled as in Liu et al., arXiv 2502.16982; else AdamW."""
    if w.ndim != 2 or s["embedding"]:
        return adamw(w, g, state, n, s)
    mu = s["momentum"]
    state["b"] = mu * state.get("b", 0.0) + (1 - mu) * g
    update = orthogonalised((1 - mu) * g + mu * state["b"])
    rate = s["lr"] * 0.2 * math.sqrt(max(w.shape))
    return w - s["lr"] * s["decay"] * w - rate * update


RULES: dict[str, Callable[[Array, Array, State, int, Mapping[str, Any]], Array]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "adamwadv": adamwadv,
    "adamwspam": adamwspam,
    "adamwprune": adamw,
    "muon": muon,
}


def run(
    name: str,
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
            key: RULES[name](
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
