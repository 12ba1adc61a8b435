"""Test of many paired differences at once, with the noise of all arms pooled.

Arms are runs over the same seeds; a comparison is an arm minus its partner, paired by
seed. With three seeds a difference alone has two degrees of freedom, and Student's t
corrected for six comparisons then asks for 11 standard errors. All arms together have
twelve degrees of freedom. The test here uses them and is guarded against arms whose
noise differs. A difference d over n seeds is significant at ``alpha`` if

pooled   n d^2 exceeds c times the pooled variance of a difference: twice the mean
         square of the residuals after arm and seed effects (two-way analysis of
         variance). c is the 1 - alpha quantile of the largest of these statistics over
         all comparisons, as in Dunnett 1955, stepwise as in Dunnett and Tamhane 1991,
         simulated for the given arms, partners and seeds
own      and its paired t test alone, not corrected, has p <= alpha
partner  and so has the same test with the variance of the partner alone: of its
         residuals against the mean of all arms but these two
arm      and the same with the variance of the arm alone has p <= 1.4 alpha

or if its paired t test alone has p <= alpha / 10 after Bonferroni's correction, so that
an unstable arm, which inflates the pooled variance, does not hide a large difference.

The guards matter where an arm or the partner is noisier than the rest, which the pooled
variance hides: by ``own`` alone an arm is falsely found in at most alpha of all cases,
however noisy it is. Where several arms have more than four times the median variance,
the levels of their guards are divided by the number of such arms. Where all arms are
alike the guards cost little. c is the largest of three: for arms of equal noise, for
shared partners 1.5 times as noisy as the rest (where the guards protect least), and for
standard deviations that are lognormal over the arms (sigma 0.7).

Variances moderated by a prior, as in limma (Smyth 2004; robust: Phipson et al. 2016),
need the same guards, since with so few seeds the noise of one arm is hardly known.

Arms may form pools of unequal noise, as the learning rates of a sweep do. Each pool
then has its own pooled variance, c is that of the largest statistic over all pools, the
level of the guard on the partner is divided by the square root of the number of pools,
since each pool has a partner that may be noisy, and noisy arms are counted over all of
them.

docs/statistics.md has the measured error rates and power.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import special

from lib import stats

Array = np.ndarray
Pairs = tuple[tuple[int, int], ...]  # (arm, partner), by their rows
Pools = tuple[int, ...]  # numbers of arms of each pool, in the order of the rows

MIN_SEEDS, MIN_ARMS = stats.MIN_SEEDS, 3
ARM_LEVEL = 1.4  # level of the guard on the arm's own variance, in units of alpha
ALONE = 0.1  # share of alpha for the paired t test alone
NOISY = 4.0  # an arm with more than this times the median variance is noisy
HUB_NOISE, SPREAD_OF_NOISE = 1.5, 0.7  # noise under which c is simulated
DRAWS, MANY_SEEDS = 20_000, 20
_CHUNK = 1_000_000  # numbers drawn at a time


@dataclass(frozen=True, slots=True)
class Variances:
    """Variance of a paired difference of one seed, estimated in four ways.

    All are (draws, comparisons), and have the same expectation where all arms have the
    same noise. ``noisy``: by comparison, the number of noisy arms of all pools if it
    has one of them, else 1.
    """

    seeds: int
    pools: int
    pooled: Array
    own: Array
    partner: Array
    arm: Array
    noisy: Array

    def guards(self) -> tuple[tuple[float, Array], ...]:
        """Level in units of alpha, and variance, of each guard."""
        partner = 1 / math.sqrt(self.pools)
        return (1.0, self.own), (partner, self.partner), (ARM_LEVEL, self.arm)

    def bound(self, alpha: float, rounding: float = 0.0) -> Array:
        """Smallest seeds * d^2 that passes all guards, (draws, comparisons)."""
        more = self.seeds * rounding
        counts = np.maximum(1, np.arange(self.noisy.max() + 1))
        found = np.zeros_like(self.own)
        for level, variance in self.guards():
            squares = t_squared(level * alpha / counts, self.seeds - 1)
            np.maximum(found, squares[self.noisy] * (variance + more), out=found)
        return found

    def bound_alone(self, alpha: float, comparisons: int, rounding: float) -> Array:
        """Smallest seeds * d^2 that the paired t test alone finds."""
        level = ALONE * alpha / comparisons
        more = self.seeds * rounding
        found: Array = t_squared(level, self.seeds - 1) * (self.own + more)
        return found


@dataclass(frozen=True, slots=True)
class Result:
    """p, half width of the simultaneous interval, and pooled sd of a paired difference,
    by comparison."""

    p: Array
    half_width: Array
    sd: Array


def pooled_test(
    losses: Array,
    pairs: Pairs,
    alpha: float = 0.05,
    comparisons: int | None = None,
    rounding: float = 0.0,
    pools: Pools = (),
) -> Result | None:
    """Test of every comparison; None with fewer than MIN_SEEDS or MIN_ARMS.

    losses is (arms, seeds); every arm occurs in a pair. comparisons: how many p is
    corrected for, if there are more than these pairs. rounding: variance that rounded
    losses add to a mean difference, whatever the number of seeds. pools: by default all
    arms are one; both arms of a pair are in the same. p is at most alpha exactly where
    the difference is significant at alpha. Same losses, same p.
    """
    losses = np.asarray(losses, dtype=np.float64)
    arms, seeds = losses.shape
    if seeds < MIN_SEEDS or arms < MIN_ARMS:
        return None
    family = max(len(pairs), comparisons or 0)
    share = len(pairs) / family  # P(max of all > x) <= P(max of these > x) / share
    means = losses.mean(axis=1)
    found = variances((losses - means[:, None])[None], pairs, seeds, pools)
    a, b = np.array(pairs).T
    d2 = seeds * np.square(means[a] - means[b])
    bound = found.bound(alpha, rounding)[0]
    pooled = found.pooled[0] + seeds * rounding
    nulls = nulls_of(arms, pairs, seeds, alpha, pools=pools)
    p = _stepwise(_ratio(d2, pooled), d2 > bound, nulls) / share
    for level, variance in found.guards():
        alone = _t_test(d2, variance[0] + seeds * rounding, seeds)
        p = np.maximum(p, alone * found.noisy[0] / level)
    single = _t_test(d2, found.own[0] + seeds * rounding, seeds)
    p = np.minimum(p, single * family / ALONE)
    bound = np.maximum(bound, critical_value(nulls, alpha * share) * pooled)
    bound = np.minimum(bound, found.bound_alone(alpha, family, rounding)[0])
    return Result(np.minimum(p, 1.0), np.sqrt(bound / seeds), np.sqrt(found.pooled[0]))


def _stepwise(statistics: Array, passes: Array, nulls: tuple[Array, ...]) -> Array:
    """p of the pooled condition: against the largest of all, and where the guards pass,
    of those not yet found."""
    p, worst = np.ones(len(statistics)), 0.0
    left = list(range(len(statistics)))
    for index in np.argsort(np.where(passes, -statistics, np.inf), kind="stable"):
        among = left if passes[index] else slice(None)
        exceeded = [null[:, among].max(axis=1) >= statistics[index] for null in nulls]
        p[index] = max(float(each.mean()) for each in exceeded)
        if passes[index]:
            p[index] = worst = max(worst, p[index])
            left.remove(index)
    return p


def critical_value(nulls: tuple[Array, ...], alpha: float) -> float:
    """c of the pooled condition, the largest over the kinds of noise."""
    return max(float(np.quantile(null.max(axis=1), 1 - alpha)) for null in nulls)


def _t_test(d2: Array, variance: Array, seeds: int) -> Array:
    """Two-sided p of seeds * d^2 with a variance of seeds - 1 degrees."""
    p: Array = 2 * special.stdtr(seeds - 1, -np.sqrt(_ratio(d2, variance)))
    return p


def _ratio(d2: Array, variance: Array) -> Array:
    """Their quotient; 0 without a variance, as nothing follows then."""
    return np.divide(d2, variance, out=np.zeros_like(d2), where=variance > 0)


def t_squared(level: Array | float, degrees: int) -> Array:
    """Square of the two-sided critical value of Student's t."""
    return np.square(special.stdtrit(degrees, 1 - np.minimum(level, 1.0) / 2))


# ---- variances ------------------------------------------------------------------


def variances(
    residuals: Array, pairs: Pairs, seeds: int, pools: Pools = ()
) -> Variances:
    """From (draws, arms, any) residuals of each arm around its mean, whose squares sum
    to seeds - 1 degrees of freedom an arm. pools: as in pooled_test."""
    degrees, count = seeds - 1, len(pairs)
    pools = pools or residuals.shape[1:2]
    by_pool = np.split(residuals, np.cumsum(pools)[:-1], axis=1)
    squares = [
        np.square(x - x.mean(axis=1, keepdims=True)).sum(axis=2) for x in by_pool
    ]
    pooled = [
        2 * x.sum(axis=1, keepdims=True) / ((x.shape[1] - 1) * degrees) for x in squares
    ]
    is_noisy = np.concatenate(
        [_are_noisy(x, is_only=len(pools) == 1) for x in squares], axis=1
    )
    a, b = np.array(pairs).T
    has_noisy = is_noisy[:, a] | is_noisy[:, b]
    number = np.where(has_noisy, is_noisy.sum(axis=1, keepdims=True), 1)
    seen = np.matmul(_contrasts(pools, pairs), residuals)
    by_kind = np.square(seen).sum(axis=2) / degrees
    own, partner, arm = (by_kind[:, i * count : (i + 1) * count] for i in range(3))
    pool_of = np.repeat(np.arange(len(pools)), pools)
    of_pairs = np.concatenate(pooled, axis=1)[:, pool_of[a]]
    return Variances(seeds, len(pools), of_pairs, own, partner, arm, number)


def _are_noisy(squares: Array, is_only: bool) -> Array:
    """Which arms of a pool are noisy, from the sum of squares of each around the mean
    of the pool."""
    arms = squares.shape[1]
    if not is_only and arms > 2:
        # The noise of an arm is in that mean too. Among few arms it would raise the
        # median and hide the arm; Grubbs 1948 has the estimate without it.
        rest = squares.sum(axis=1, keepdims=True) / (arms * (arms - 1))
        squares = (squares - rest) * arms / (arms - 2)
    typical = np.median(squares, axis=1, keepdims=True)
    found: Array = squares > NOISY * np.maximum(typical, 0.0)
    return found


@functools.lru_cache(maxsize=64)
def _contrasts(pools: Pools, pairs: Pairs) -> Array:
    """Rows: arm minus partner; partner, then arm, minus the mean of all of the pool but
    these two, scaled to the variance of a difference of two arms. In a pool of two
    there are no others, and all three are arm minus partner."""
    pool_of = np.repeat(np.arange(len(pools)), pools)
    count = len(pairs)
    rows = np.zeros((3 * count, len(pool_of)))
    for index, (arm, partner) in enumerate(pairs):
        assert pool_of[arm] == pool_of[partner]
        rows[index::count, [arm, partner]] = 1, -1
        others = pools[pool_of[arm]] - 2
        if not others:
            continue
        scale = np.sqrt(2 / (1 + 1 / others))
        for kind, one, other in ((1, partner, arm), (2, arm, partner)):
            row = rows[kind * count + index]
            row[pool_of == pool_of[arm]] = -scale / others
            row[one], row[other] = scale, 0
    return rows


# ---- simulation without any difference ------------------------------------------


@functools.lru_cache(maxsize=32)
def nulls_of(
    arms: int,
    pairs: Pairs,
    seeds: int,
    alpha: float,
    count: int = DRAWS,
    pools: Pools = (),
) -> tuple[Array, ...]:
    """Statistics of the pooled condition, (draws, comparisons), by kind of noise: 0
    where a guard does not pass, infinite where the paired t test alone finds."""
    often = [row for row, n in Counter(b for _, b in pairs).items() if n > 1]
    hubs = np.where(np.isin(np.arange(arms), often), HUB_NOISE, 1.0)[:, None]
    random = np.random.default_rng(0)

    def lognormal(size: int) -> Array:
        return np.exp(SPREAD_OF_NOISE * random.standard_normal((size, arms, 1)))

    kinds: list[Callable[[int], Array]] = [lambda _: np.ones((arms, 1)), lognormal]
    if often:
        kinds.append(lambda _: hubs)
    if seeds > MANY_SEEDS:
        count //= 4  # c hardly varies there
    return tuple(
        _null(pairs, seeds, alpha, draws(arms, seeds, noise, count), pools)
        for noise in kinds
    )


def _null(
    pairs: Pairs,
    seeds: int,
    alpha: float,
    drawn: Iterator[tuple[Array, Array]],
    pools: Pools,
) -> Array:
    a, b = np.array(pairs).T
    parts = []
    for means, residuals in drawn:
        found = variances(residuals, pairs, seeds, pools)
        d2 = np.square(means[:, a] - means[:, b])
        passes = d2 > found.bound(alpha)
        statistics = np.where(passes, d2 / found.pooled, 0.0)
        statistics[d2 > found.bound_alone(alpha, len(pairs), 0.0)] = np.inf
        parts.append(statistics.astype(np.float32))
    return np.concatenate(parts)


def draws(
    arms: int, seeds: int, noise: Callable[[int], Array], count: int = DRAWS
) -> Iterator[tuple[Array, Array]]:
    """Normal losses without differences, in portions: (draws, arms) means times
    sqrt(seeds), and (draws, arms, any) residuals.

    The residuals are seeds - 1 free columns in the place of seeds columns that sum to 0
    or, where that is more than the arms, a Bartlett factor of the same Wishart
    distribution. ``noise(size)`` gives the sd by arm, (arms, 1) or (size, arms, 1).
    """
    random = np.random.default_rng(seeds)
    columns = min(seeds - 1, arms)
    portion = max(1, _CHUNK // (arms * columns))
    for start in range(0, count, portion):
        size = min(portion, count - start)
        sd = noise(size)
        drawn = random.standard_normal((size, arms, columns))
        if seeds - 1 > arms:
            drawn = np.tril(drawn, -1)
            degrees = seeds - 1 - np.arange(arms)
            diagonal = np.sqrt(random.chisquare(degrees, (size, arms)))
            drawn[:, np.arange(arms), np.arange(arms)] = diagonal
        yield random.standard_normal((size, arms)) * sd[..., 0], drawn * sd
