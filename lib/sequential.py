"""Tests of an open-ended series of arms: the levels to test at, and the test.

Test number j of a series has the level alpha_j, whatever comes after it. Two rules give
the levels, from gamma_j proportional to 1 / j^1.6 with sum 1:

family-wise error  alpha_j = alpha gamma_j, plus alpha_{j-1} if test j-1 found a
                   difference: online fallback of Tian and Ramdas 2021, "Online control
                   of the familywise error rate", arXiv 1910.04900. The probability of
                   any false finding in the whole series is at most alpha, whatever the
                   dependence between the tests. Arms with a common baseline are
                   dependent, as a baseline that ended low by chance harms all of them.
false discoveries  LORD++ of Ramdas et al. 2017, arXiv 1710.00499, after Javanmard and
                   Montanari 2018: every finding earns level for later tests. The
                   expected share of false ones among the findings is at most alpha for
                   independent tests; for arms with a common baseline this was simulated
                   (docs/statistics.md).

A difference d over n seeds is found at alpha_j if

pooled   n d^2 is larger than c times the variance of a difference that is estimated
         from all arms tested so far, and the guards of lib/pooled_variance.py (own,
         partner, arm) pass at the level of the whole series. c gives false findings
         with a share of alpha_j in each of four worlds: arms of equal noise, a
         partner 1.5 times as noisy, standard deviations that are lognormal over the
         arms (sigma 0.7), and every tenth arm 6 times as noisy as the rest
alone    or its paired t test alone finds it at the rest of alpha_j: a tenth with up to
         five seeds, and half with more

The levels are small, down to 1e-5, so the probability is not counted in simulated
draws: given the noise of a draw, d is normal, and its tail is computed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from lib import pooled_power, pooled_variance, stats

Array = np.ndarray

DECAY = 1.6  # of the levels, as in the experiments of Tian and Ramdas 2021
LORD_START = 0.5  # share of alpha that the series starts with, W_0 of LORD++
MOST_ARMS = 40  # rows that the noise is estimated from; more change little
DRAWS = 20_000  # comparisons that are simulated, for each world
PLANNING_DRAWS = 5_000
FEW_SEEDS = 5
NOISY_SHARE, NOISY_FACTOR = 0.1, 6.0
GRID = np.geomspace(0.3, 1e6, 150)  # statistics at which p is computed


# ---- levels ---------------------------------------------------------------------


def gamma(number: int) -> float:
    """Share of test ``number`` (from 1); all shares sum to 1."""
    return float(number**-DECAY) / float(special.zeta(DECAY))


def fallback_level(
    alpha: float, levels: Sequence[float], found: Sequence[bool]
) -> float:
    """Level of the next test that keeps the family-wise error, given the levels of all
    earlier tests and whether they found a difference."""
    inherited = levels[-1] if found and found[-1] else 0.0
    return alpha * gamma(len(found) + 1) + inherited


def lord_level(alpha: float, levels: Sequence[float], found: Sequence[bool]) -> float:
    """Level of the next test by LORD++."""
    del levels
    number, start = len(found) + 1, LORD_START * alpha
    level = start * gamma(number)
    for rank, when in enumerate(i + 1 for i, was in enumerate(found) if was):
        earned = alpha - start if rank == 0 else alpha
        level += earned * gamma(number - when)
    return level


def share_alone(seeds: int) -> float:
    """Share of a level for the paired t test alone: with few seeds it has little power
    at such levels, and with many it does not need the other arms."""
    return 0.1 if seeds <= FEW_SEEDS else 0.5


# ---- the test -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SequentialResult:
    """p to compare with the level of the test, and half the width of the interval at
    that level."""

    p: float
    half_width: float


def sequential_test(
    losses: Array, alpha: float, level: float, rounding: float = 0.0
) -> SequentialResult | None:
    """Test of row 0 (arm) against row 1 (partner); further rows are the arms before it.

    losses is (arms, seeds); alpha is the error of the whole series, level that of this
    test. None with fewer than stats.MIN_SEEDS seeds. rounding: as in pooled_test. With
    two rows the paired t test decides.
    """
    losses = np.asarray(losses, dtype=np.float64)[:MOST_ARMS]
    arms, seeds = losses.shape
    if seeds < stats.MIN_SEEDS:
        return None
    differences = (losses[0] - losses[1]).tolist()
    alone = stats.t_test(differences, rounding)
    sample = stats.describe(differences, rounding)
    assert alone is not None
    if arms < pooled_variance.MIN_ARMS:
        t = stats.t_quantile(1 - level / 2, seeds - 1)
        return SequentialResult(alone, t * sample.error)
    residuals = (losses - losses.mean(axis=1, keepdims=True))[None]
    noise = pooled_variance.variances(residuals, ((0, 1),), seeds)
    bound = float(noise.bound(alpha, rounding)[0, 0])
    variance = float(noise.pooled[0, 0]) + seeds * rounding
    squared, p = seeds * sample.mean**2, alone / share_alone(seeds)
    if squared > bound and variance > 0:
        p = min(p, float(p_pooled(squared / variance, arms, seeds, alpha)))
    bound = max(bound, critical_value(arms, seeds, alpha, level) * variance)
    bound = min(bound, float(_bound_alone(noise, level, rounding)[0, 0]))
    return SequentialResult(min(1.0, p), float(np.sqrt(bound / seeds)))


def _bound_alone(
    noise: pooled_variance.Variances, level: float, rounding: float
) -> Array:
    """Smallest seeds * d^2 that the paired t test alone finds."""
    t_squared = pooled_variance.t_squared(
        share_alone(noise.seeds) * level, noise.seeds - 1
    )
    found: Array = t_squared * (noise.own + noise.seeds * rounding)
    return found


def p_pooled(statistic: Array | float, arms: int, seeds: int, alpha: float) -> Array:
    """p of n d^2 / pooled variance where the guards pass."""
    tail, at = log_tail(arms, seeds, alpha), np.maximum(statistic, GRID[0])
    p: Array = np.exp(np.interp(np.log(at), np.log(GRID), tail)) / (
        1 - share_alone(seeds)
    )
    return p


def critical_value(
    arms: int, seeds: int, alpha: float, level: float, count: int = DRAWS
) -> float:
    """c of the pooled condition at a level, from so many simulated comparisons."""
    tail = log_tail(arms, seeds, alpha, count)
    wanted = np.log(level * (1 - share_alone(seeds)))
    return float(np.exp(np.interp(-wanted, -tail, np.log(GRID))))


# ---- without any difference -----------------------------------------------------


@functools.lru_cache(maxsize=512)
def log_tail(arms: int, seeds: int, alpha: float, count: int = DRAWS) -> Array:
    """log P(statistic > x, and the guards pass) without any difference, for each x of
    GRID; the largest over the worlds."""
    found = [_tail(*_null(arms, seeds, alpha, world, count)) for world in WORLDS]
    return np.log(np.maximum(np.max(found, axis=0), 1e-300))


def _tail(bound: Array, variance: Array, sd: Array) -> Array:
    """P(N(0, sd^2)^2 > bound and > x variance), for each x of GRID."""
    edges = (np.maximum(bound, x * variance) for x in GRID)
    return 2 * np.array([special.ndtr(-np.sqrt(edge) / sd).mean() for edge in edges])


World = Callable[[np.random.Generator, int, int], Array]  # sds, (size, arms)


def _null(
    arms: int, seeds: int, alpha: float, world: World, count: int
) -> tuple[Array, Array, Array]:
    """Bound of the guards, pooled variance, and true sd of sqrt(n) d, by draw and
    comparison; all arms but row 0 are compared with it."""
    random, scales = np.random.default_rng(arms), []

    def noise(size: int) -> Array:
        scales.append(world(random, size, arms))
        return scales[-1][..., None]

    pairs = tuple((arm, 0) for arm in range(1, arms))
    parts = []
    for _, residuals in pooled_variance.draws(arms, seeds, noise, count // (arms - 1)):
        found = pooled_variance.variances(residuals, pairs, seeds)
        sd = np.sqrt(np.square(scales[-1][:, 1:]) + np.square(scales[-1][:, :1]))
        parts.append((found.bound(alpha), found.pooled, sd))
    bound, variance, sd = (np.concatenate(part) for part in zip(*parts, strict=True))
    return bound, variance, sd


def _equal(random: np.random.Generator, size: int, arms: int) -> Array:
    return np.ones((size, arms))


def _noisy_partner(random: np.random.Generator, size: int, arms: int) -> Array:
    scale = np.ones((size, arms))
    scale[:, 0] = pooled_variance.HUB_NOISE
    return scale


def _lognormal(random: np.random.Generator, size: int, arms: int) -> Array:
    return np.exp(
        pooled_variance.SPREAD_OF_NOISE * random.standard_normal((size, arms))
    )


def _noisy_arms(random: np.random.Generator, size: int, arms: int) -> Array:
    scale = np.where(random.random((size, arms)) < NOISY_SHARE, NOISY_FACTOR, 1.0)
    scale[:, 0] = 1.0
    return scale


WORLDS = (_equal, _noisy_partner, _lognormal, _noisy_arms)


# ---- power ----------------------------------------------------------------------


def power(
    delta: float,
    sd: float,
    seeds: int,
    arms: int,
    alpha: float,
    level: float,
    margin: float = 0.0,
) -> float:
    """Probability that a true difference of ``delta`` is found at ``level``, and not
    put inside the margin by the equivalence test at it (margin 0: no such test).

    sd is that of a paired difference; arms is the number of rows of the test, all of
    the same noise. With two, the power of the paired t test.
    """
    if arms < pooled_variance.MIN_ARMS:
        return stats.power_of_difference(delta, sd, seeds, level, margin)
    if seeds < stats.MIN_SEEDS:
        return 0.0
    bounds = _bounds(min(arms, MOST_ARMS), seeds, alpha, level)
    return pooled_power.chance_beyond(*bounds, delta, sd, seeds, level, margin)


@functools.lru_cache(maxsize=256)
def _bounds(arms: int, seeds: int, alpha: float, level: float) -> tuple[Array, Array]:
    """Bound on sqrt(seeds) |d|, and own standard deviation, for arms of unit noise."""
    c = pooled_power.planned_c(
        seeds, lambda n: critical_value(arms, n, alpha, level, PLANNING_DRAWS)
    )
    bounds, owns = [], []
    pairs = tuple((arm, 0) for arm in range(1, arms))
    count = PLANNING_DRAWS // (arms - 1)
    for _, residuals in pooled_variance.draws(
        arms, seeds, lambda _: np.ones((arms, 1)), count
    ):
        found = pooled_variance.variances(residuals, pairs, seeds)
        bound = np.maximum(found.bound(alpha), c * found.pooled)
        bounds.append(np.sqrt(np.minimum(bound, _bound_alone(found, level, 0.0))))
        owns.append(np.sqrt(found.own))
    return np.concatenate(bounds), np.concatenate(owns)
