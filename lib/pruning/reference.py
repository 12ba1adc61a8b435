"""Naive float64 schedule, scores and masks of pruning: the truth.

Written from the formulas in numpy, with no torch and nothing shared with the
code under test.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def sparsity(
    step: int, start: int, interval: int, updates: int, final: float, initial: float
) -> float:
    """Zhu & Gupta's cubic at `step`, held between updates and after the last."""
    done = min((step - start) // interval, updates)
    if done < 0:
        return initial
    return final + (initial - final) * (1 - done / updates) ** 3


def score(variant: str, w: Array, m: Array, v: Array, t: int, beta1: float) -> Array:
    """The scores bitter0 to bitter9 (eps 1e-8 beside each sqrt(v))."""
    size, root, eps = np.abs(w), np.sqrt(v), 1e-8
    towards = np.sign(w) * m / (root + eps)
    return {
        "bitter0": size * np.abs(m) * size / (root + eps),
        "bitter1": size,
        "bitter2": size,
        "bitter3": size * np.sqrt(np.abs(m)),
        "bitter4": size * np.sqrt(np.abs(m)),
        "bitter5": towards + 0.1 * size,
        "bitter6": size * np.sqrt(np.abs(m)) * np.abs(m) / (root + eps),
        "bitter7": size * v**0.25,
        "bitter8": size * np.sqrt(np.abs(m / (1 - beta1**t))),
        "bitter9": size * np.sqrt(np.abs(m)) + 0.1 * towards,
    }[variant]


def keep_masks(scores: list[Array], pruned: int) -> list[Array]:
    """Prune the `pruned` lowest over all arrays; of equals, the first go."""
    flat = np.concatenate([s.ravel() for s in scores])
    keep = np.ones(flat.size, dtype=bool)
    keep[np.argsort(flat, kind="stable")[:pruned]] = False
    cuts = np.cumsum([s.size for s in scores])[:-1]
    return [
        part.reshape(s.shape)
        for part, s in zip(np.split(keep, cuts), scores, strict=True)
    ]
