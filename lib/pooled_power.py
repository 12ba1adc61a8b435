"""Power of the test of lib/pooled_variance.py, to plan the number of seeds with."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from scipy import special

from lib import stats
from lib.pooled_variance import (
    MANY_SEEDS,
    MIN_SEEDS,
    Array,
    Pairs,
    Pools,
    critical_value,
    draws,
    nulls_of,
    variances,
)

DRAWS = 5_000  # fewer than to test with: a plan is less exact anyway
_KNOTS = (3, 4, 5, 6, 8, 12, 20, 50)  # seeds for which c is simulated


def _seed_numbers() -> tuple[int, ...]:
    numbers = list(range(MIN_SEEDS, 50))
    while numbers[-1] < stats.MAX_SEEDS:
        numbers.append(min(stats.MAX_SEEDS, int(1.05 * numbers[-1])))
    return tuple(numbers)


SEED_NUMBERS = _seed_numbers()  # for which the power, being slow, is looked up first


def power(
    delta: float,
    sd: float,
    seeds: int,
    comparisons: int,
    alpha: float,
    margin: float,
    pools: int = 1,
) -> float:
    """Chance that a true difference of ``delta`` in one of many arms is found, and not
    put inside the margin by the equivalence test (margin 0: no such test).

    sd is that of a paired difference; all arms have the same noise and, in each of the
    pools among which they are spread evenly, one partner. Simulated variances, exact
    given these.
    """
    if seeds < MIN_SEEDS:
        return 0.0
    bounds = _bounds(seeds, comparisons, alpha, pools)
    return chance_beyond(*bounds, delta, sd, seeds, alpha / comparisons, margin)


def chance_beyond(
    bound: Array,
    own: Array,
    delta: float,
    sd: float,
    seeds: int,
    level: float,
    margin: float,
) -> float:
    """Mean chance over draws that the difference d of ``power`` exceeds its bound and
    what the equivalence test at ``level`` would accept.

    bound: on sqrt(seeds) |d|; own: standard deviation, both for arms of unit noise.
    """
    unit = sd / np.sqrt(2)
    if margin > 0:
        t = special.stdtrit(seeds - 1, 1 - level)
        bound = np.maximum(bound, margin * np.sqrt(seeds) / unit - t * own)
    found = special.ndtr((abs(delta) * np.sqrt(seeds) / unit - bound) / np.sqrt(2))
    return float(found.mean())


@functools.lru_cache(maxsize=1024)
def _bounds(
    seeds: int, comparisons: int, alpha: float, number: int
) -> tuple[Array, Array]:
    """Bound on sqrt(seeds) |d|, and own standard deviation, for arms of unit noise."""
    arms, pools = comparisons + number, even_pools(comparisons, number)
    c = planned_c(seeds, lambda n: _c_at(n, pools, alpha))
    count = DRAWS // (1 if seeds <= MANY_SEEDS else 10)
    bounds, owns = [], []
    for _, residuals in draws(arms, seeds, lambda _: np.ones((arms, 1)), count):
        found = variances(residuals, ((1, 0),), seeds, pools)
        bound = np.maximum(found.bound(alpha), c * found.pooled)
        alone = found.bound_alone(alpha, comparisons, 0.0)
        bounds.append(np.sqrt(np.minimum(bound, alone)[:, 0]))
        owns.append(np.sqrt(found.own[:, 0]))
    return np.concatenate(bounds), np.concatenate(owns)


def planned_c(seeds: int, c_at: Callable[[int], float]) -> float:
    """c for planning: ``c_at(knot)``, linear in 1 / seeds between the knots."""
    above = next((knot for knot in _KNOTS if knot >= seeds), _KNOTS[-1])
    below = next((knot for knot in reversed(_KNOTS) if knot <= seeds), _KNOTS[0])
    places, values = [1 / above, 1 / below], [c_at(knot) for knot in (above, below)]
    return float(np.interp(1 / seeds, places, values))


@functools.lru_cache(maxsize=256)
def _c_at(seeds: int, pools: Pools, alpha: float) -> float:
    arms, pairs = sum(pools), stars(pools)
    nulls = nulls_of(arms, pairs, seeds, alpha, DRAWS, pools)
    return critical_value(nulls, alpha)


def even_pools(comparisons: int, number: int) -> Pools:
    """That many pools of arms and a partner each, the larger ones last."""
    return tuple((comparisons + i) // number + 1 for i in range(number))


def stars(pools: Pools) -> Pairs:
    """Every arm against the first of its pool."""
    firsts = (sum(pools[:i]) for i in range(len(pools)))
    return tuple(
        (first + arm, first)
        for first, size in zip(firsts, pools, strict=True)
        for arm in range(1, size)
    )
