"""Naive float64 schedule and masks of pruning, which certificates compare with.

Written from the formulas in numpy, with no torch and nothing shared with the
code under test. The scores of single weights are in lib/pruning/methods/.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray
CLOSE = 1e-5  # of two float32 scores, relative to the largest: either may go first


def sparsity(step: int, start: int, interval: int, updates: int, final: float) -> float:
    """Zhu & Gupta's cubic at `step`, held between updates and after the last."""
    done = min((step - start) // interval, updates)
    if done < 0:
        return 0.0
    return final - final * (1 - done / updates) ** 3


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


def wrong_choices(
    scores: list[Array], kept: list[Array], pruned: int, close: float = CLOSE
) -> int:
    """Entries of masks that drop another one than the `pruned` lowest scores.

    Scores as near to the threshold as `close`, relative to the largest, may go either
    way; the number of those that go may not.
    """
    flat = np.concatenate([s.ravel() for s in scores])
    mask = np.concatenate([m.ravel() for m in kept])
    finite = np.abs(flat[np.isfinite(flat)])
    near = close * float(finite.max(initial=0.0))
    wrong = abs(int((~mask).sum()) - pruned)
    if 0 < pruned < len(flat):
        order = np.sort(flat)
        wrong += int((mask & (flat < order[pruned - 1] - near)).sum())
        wrong += int((~mask & (flat > order[pruned] + near)).sum())
    return wrong


def head_scores(
    qkv: tuple[Array, Array], proj: tuple[Array, Array], heads: int, t: int, beta: tuple
) -> list[float]:
    """Mean |m_hat| / (sqrt(v_hat) + eps) of each head, weight by weight.

    qkv: (m, v) of the fused projection [3 H D, E], the queries' H D rows first, then
    the keys', then the values'; proj: (m, v) of the output projection [E, H D].
    """
    width, columns = proj[0].shape[1] // heads, qkv[0].shape[1]
    found = []
    for head in range(heads):
        ratios = []
        own = range(head * width, (head + 1) * width)
        entries = [
            (qkv, part * heads * width + i, j)
            for part in range(3)
            for i in own
            for j in range(columns)
        ]
        entries += [(proj, i, j) for i in range(columns) for j in own]
        for (m, v), i, j in entries:
            m_hat = m[i, j] / (1 - beta[0] ** t)
            v_hat = v[i, j] / (1 - beta[1] ** t)
            ratios.append(abs(m_hat) / (v_hat**0.5 + 1e-8))
        found.append(float(sum(ratios) / len(ratios)))
    return found


def keep_heads(scores: list[list[float]], pruned: int) -> list[list[bool]]:
    """Drop the lowest head that is not its layer's last, `pruned` times over."""
    keep = [[True for _ in layer] for layer in scores]
    for _ in range(pruned):
        lowest = None
        for i, layer in enumerate(scores):
            for h, score in enumerate(layer):
                free = keep[i][h] and sum(keep[i]) > 1
                if free and (lowest is None or score < scores[lowest[0]][lowest[1]]):
                    lowest = (i, h)
        if lowest is not None:
            keep[lowest[0]][lowest[1]] = False
    return keep
