"""Statistics of paired replicas: intervals, tests, Holm, power, seeds needed.

Every sample here is a list of paired differences, one a seed, in the unit of the
metric (nats for a loss). Only scipy.special is used, which loads in a third of
the time of scipy.stats; the tests hold the results against scipy.stats.

A sample without any spread proves no difference: its values may have been rounded to
the same number. ``rounding`` is the variance that rounding adds to a mean difference.
It is not divided by the number of seeds, since where the spread is small all seeds may
be rounded the same way.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import special

MIN_SEEDS = 3  # fewer give no verdict, whatever they show
MAX_SEEDS = 1000  # the planner looks no further
SEED_NUMBERS = range(MIN_SEEDS, MAX_SEEDS + 1)
_GRID = 400  # points of the integral over the unknown spread


class Interval(NamedTuple):
    """Both ends, in the metric's unit; in JSON a list of them."""

    low: float
    high: float

    @property
    def half(self) -> float:
        """Half of its width."""
        return (self.high - self.low) / 2

    def __contains__(self, value: float) -> bool:  # type: ignore[override]
        """Whether a value lies within it, the ends included."""
        return self.low <= value <= self.high


@dataclass(frozen=True, slots=True)
class Sample:
    """Size, mean and sample standard deviation (n-1; nan for one value)."""

    n: int
    mean: float
    sd: float
    rounding: float = 0.0  # variance of the mean by rounding

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return math.sqrt(self.sd**2 / self.n + self.rounding)


def describe(values: Sequence[float], rounding: float = 0.0) -> Sample:
    """ValueError for an empty sample or a value that is not finite."""
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"a sample needs finite values, got {list(values)!r}")
    n, mean = len(values), math.fsum(values) / len(values)
    if min(values) == max(values):
        return Sample(n, values[0], 0.0 if n > 1 else math.nan, rounding)
    spread = math.fsum((value - mean) ** 2 for value in values)
    return Sample(n, mean, math.sqrt(spread / (n - 1)), rounding)


# ---- intervals and tests --------------------------------------------------------


def t_interval(
    values: Sequence[float], alpha: float = 0.05, rounding: float = 0.0
) -> Interval | None:
    """Two-sided 1-alpha interval of the mean by Student's t; None for one value."""
    sample = describe(values, rounding)
    if sample.n < 2:
        return None
    half = t_quantile(1 - alpha / 2, sample.n - 1) * sample.error
    return Interval(sample.mean - half, sample.mean + half)


def t_test(values: Sequence[float], rounding: float = 0.0) -> float | None:
    """Two-sided p of "the mean is 0"; None for one value, 1 without any spread."""
    sample = describe(values, rounding)
    if sample.n < 2:
        return None
    if sample.error == 0:
        return 1.0
    return min(1.0, 2 * _upper_tail(abs(sample.mean), sample))


def equivalence_test(
    values: Sequence[float], margin: float, rounding: float = 0.0
) -> float | None:
    """p of "the mean lies outside (-margin, margin)"; None for one value.

    Two one-sided t tests (Schuirmann 1987); the larger p counts. Without any spread
    only differences that are all 0 are equivalent.
    """
    sample = describe(values, rounding)
    if sample.n < 2:
        return None
    if sample.error == 0:
        return 0.0 if sample.mean == 0 else 1.0
    return _upper_tail(margin - abs(sample.mean), sample)


def t_quantile(probability: float, df: int) -> float:
    """Quantile of Student's t."""
    return float(special.stdtrit(df, probability))


def _upper_tail(distance: float, sample: Sample) -> float:
    """P(T > distance / standard error)."""
    return float(special.stdtr(sample.n - 1, -distance / sample.error))


def bootstrap_interval(
    values: Sequence[float], alpha: float = 0.05, resamples: int = 4000, seed: int = 0
) -> Interval | None:
    """Studentized bootstrap interval of the mean; None below 4 values.

    Free of the normal assumption, so a check on t_interval. A percentile interval
    would be far too short for the handful of seeds one can afford. With fewer than
    4 values the resamples without any spread make the method worthless.
    """
    sample = describe(values)
    if sample.n < 4 or sample.sd == 0:
        return None
    generator = np.random.default_rng(seed)
    data = np.asarray(values, dtype=np.float64)
    drawn = data[generator.integers(sample.n, size=(resamples, sample.n))]
    sd = drawn.std(axis=1, ddof=1)
    centred, usable = drawn.mean(axis=1) - sample.mean, sd > 1e-9 * sample.sd
    t = centred[usable] / (sd[usable] / math.sqrt(sample.n))
    low, high = np.quantile(t, [alpha / 2, 1 - alpha / 2])
    return Interval(
        sample.mean - float(high) * sample.error,
        sample.mean - float(low) * sample.error,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values in the order given (Holm 1979), never below the raw ones."""
    adjusted, worst = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(
        sorted(range(len(p_values)), key=p_values.__getitem__)
    ):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted


def sd_interval(sample: Sample, alpha: float = 0.05) -> Interval | None:
    """1-alpha interval of a normal's standard deviation (chi-square); None for n=1."""
    if sample.n < 2:
        return None
    df = sample.n - 1
    low, high = special.chdtri(df, [alpha / 2, 1 - alpha / 2])  # upper tails
    return Interval(sample.sd * math.sqrt(df / low), sample.sd * math.sqrt(df / high))


# ---- planning -------------------------------------------------------------------


def power_of_difference(
    delta: float, sd: float, n: int, alpha: float, margin: float = 0.0
) -> float:
    """Chance that a two-sided t test at alpha finds a true mean of delta, right way,
    while equivalence_test at alpha does not put it inside the margin (0: no such test).

    ``sd`` is that of the paired differences. Noncentral t; with a margin as in
    power_of_equivalence.
    """
    if n < 2:
        return 0.0
    if sd == 0:
        return float(delta != 0 and abs(delta) >= margin)
    if margin > 0:
        spread = _spreads_of_mean(sd, n)
        found = t_quantile(1 - alpha / 2, n - 1) * spread
        not_small = margin - t_quantile(1 - alpha, n - 1) * spread
        beyond = np.maximum(found, not_small) - abs(delta)
        return float(special.ndtr(-beyond / (sd / math.sqrt(n))).mean())
    noncentrality = abs(delta) / sd * math.sqrt(n)
    return float(
        1 - special.nctdtr(n - 1, noncentrality, t_quantile(1 - alpha / 2, n - 1))
    )


def power_of_equivalence(
    delta: float, margin: float, sd: float, n: int, alpha: float
) -> float:
    """Chance that equivalence_test at alpha puts a true mean of delta inside margin.

    The mean is normal given the sample's spread, and the spread's square is
    chi-square: the normal part exactly, the spread by quantiles.
    """
    if n < 2:
        return 0.0
    if sd == 0:
        return float(abs(delta) < margin)
    room = margin - t_quantile(1 - alpha, n - 1) * _spreads_of_mean(sd, n)
    error = sd / math.sqrt(n)
    inside = special.ndtr((room - delta) / error) - special.ndtr(
        (-room - delta) / error
    )
    return float(np.where(room > 0, inside, 0.0).mean())


def _spreads_of_mean(sd: float, n: int) -> np.ndarray:
    """Quantiles of a sample's standard error, all equally likely."""
    return sd * _unit_spreads(n) / math.sqrt(n)


@functools.lru_cache(maxsize=MAX_SEEDS)
def _unit_spreads(n: int) -> np.ndarray:
    upper = 1 - (np.arange(_GRID) + 0.5) / _GRID
    spread: np.ndarray = np.sqrt(special.chdtri(n - 1, upper) / (n - 1))
    return spread


@dataclass(frozen=True, slots=True)
class Seeds:
    """Numbers of seeds that reach a power: from ``first`` to ``last``; None: up to
    MAX_SEEDS at least."""

    first: int
    last: int | None = None


def seeds_needed(power_with: Callable[[int], float], power: float) -> Seeds | None:
    """The smallest number of seeds, from MIN_SEEDS, that reaches the power; None over
    MAX_SEEDS. ``power_with(n)`` must rise with n."""
    place = bisect_left(SEED_NUMBERS, power, key=power_with)
    return Seeds(SEED_NUMBERS[place]) if place < len(SEED_NUMBERS) else None


def seed_window(
    power_with: Callable[[int], float],
    power: float,
    numbers: Sequence[int] = SEED_NUMBERS,
) -> Seeds | None:
    """The first numbers of seeds that reach a power that may rise and fall with n, as
    that of finding a difference smaller than the margin does; None if none does.

    It is looked up for all of ``numbers``, and for every n before the first of these
    that reaches it or falls below it again.
    """
    reached = functools.cache(lambda n: power_with(n) >= power)
    first = _first(numbers, reached)
    if first is None:
        return None
    later = [first, *(n for n in numbers if n > first)]
    last = _first(later, lambda n: not reached(n))
    return Seeds(first, None if last is None else last - 1)


def _first(numbers: Sequence[int], holds: Callable[[int], bool]) -> int | None:
    """The first n for which it holds, counting upwards within the steps of numbers."""
    before = numbers[0] - 1
    for n in numbers:
        if holds(n):
            return next(k for k in range(before + 1, n + 1) if holds(k))
        before = n
    return None


def seeds_for_equivalence(
    delta: float, margin: float, sd: float, alpha: float = 0.05, power: float = 0.8
) -> Seeds | None:
    """Pairs for equivalence_test at alpha to accept a mean of delta with this power."""
    return seeds_needed(
        lambda n: power_of_equivalence(delta, margin, sd, n, alpha), power
    )


def detectable_difference(
    power_with: Callable[[float], float], sd: float, power: float = 0.8
) -> float:
    """The smallest true mean that is found with this power; ``power_with(delta)``."""
    low, high = 0.0, sd
    while power_with(high) < power:
        low, high = high, 2 * high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if power_with(middle) >= power else (middle, high)
    return high


def pooled_sd(samples: Sequence[Sequence[float]]) -> float | None:
    """Common standard deviation of samples of different means; None without spread."""
    described = [describe(sample) for sample in samples if len(sample) > 1]
    df = sum(sample.n - 1 for sample in described)
    total = math.fsum((sample.n - 1) * sample.sd**2 for sample in described)
    return math.sqrt(total / df) if total > 0 else None
