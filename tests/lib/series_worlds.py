"""Series of arms against one baseline, tested one after the other, many at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import special

from lib import pooled_variance, sequential

Levels = Callable[[float, list[float], list[bool]], float]


def p_values(losses: np.ndarray, alpha: float = 0.05) -> np.ndarray:
    """(draws, arms) p of sequential.test, for (draws, 1 + arms, seeds) losses with the
    baseline in row 0, each arm with the noise of the arms up to it."""
    draws, rows, seeds = losses.shape
    p = np.ones((draws, rows - 1))
    means = losses.mean(axis=2)
    residuals = losses - means[:, :, None]
    for arm in range(1, rows):
        d2 = seeds * np.square(means[:, arm] - means[:, 0])
        before = list(range(arm - 1, 0, -1))[: sequential.MOST_ARMS - 2]
        seen = residuals[:, [arm, 0, *before]]
        own = np.square(residuals[:, arm] - residuals[:, 0]).sum(axis=1) / (seeds - 1)
        alone = 2 * special.stdtr(seeds - 1, -np.sqrt(d2 / own))
        if seen.shape[1] < pooled_variance.MIN_ARMS:
            p[:, arm - 1] = alone
            continue
        noise = pooled_variance.variances(seen, ((0, 1),), seeds)
        ratio = d2 / noise.pooled[:, 0]
        of_pooled = sequential.p_pooled(ratio, seen.shape[1], seeds, alpha)
        passes = d2 > noise.bound(alpha)[:, 0]
        by_pool = np.where(passes, of_pooled, 1.0)
        p[:, arm - 1] = np.minimum(
            1, np.minimum(alone / sequential.share_alone(seeds), by_pool)
        )
    return p


def found_in(p: np.ndarray, rule: Levels, alpha: float = 0.05) -> np.ndarray:
    """Which tests of each series find a difference, by a rule for the levels."""
    found = np.zeros(p.shape, dtype=bool)
    for series, row in enumerate(p):
        levels: list[float] = []
        mine: list[bool] = []
        for value in row:
            levels.append(rule(alpha, levels, mine))
            mine.append(bool(value <= levels[-1]))
        found[series] = mine
    return found
