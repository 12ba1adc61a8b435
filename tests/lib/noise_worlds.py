"""Worlds without any difference between arms, in which no test may find one.

Losses are (draws, 1 + arms, seeds), row 0 the baseline; partners are rows by arm. The
noise of an arm is around 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from lib import pooled_power, pooled_variance

Maker = Callable[[np.random.Generator, tuple[int, int, int]], np.ndarray]


def normal(random, shape):
    return random.standard_normal(shape)


def rows(factor: float, *which: int) -> Maker:
    """Some arms noisier than the rest by a factor."""

    def make(random, shape):
        losses = normal(random, shape)
        losses[:, [row for row in which if row < shape[1]]] *= factor
        return losses

    return make


def lognormal(sigma: float) -> Maker:
    def make(random, shape):
        scale = np.exp(sigma * random.standard_normal((*shape[:2], 1)))
        return scale * normal(random, shape)

    return make


def seed_effects(random, shape):
    common = 3 * random.standard_normal((shape[0], 1, shape[2]))
    return normal(random, shape) + common


def outlier_seeds(random, shape):
    """Some seeds are noisier for all arms, as after a loss spike of the batches."""
    return normal(random, shape) * np.where(
        random.random((shape[0], 1, shape[2])) < 0.15, 6, 1
    )


def outlier_runs(random, shape):
    return normal(random, shape) * np.where(random.random(shape) < 0.05, 8, 1)


def shifted_runs(random, shape):
    """One run of ten ends far above the others."""
    return normal(random, shape) + np.where(random.random(shape) < 0.1, 10, 0)


def groups(random, shape):
    """Half of the arms have a seed effect in common that the others lack."""
    losses = normal(random, shape)
    common = 2 * random.standard_normal((shape[0], 1, shape[2]))
    losses[:, 1 : shape[1] // 2 + 1] += common
    return losses


WORLDS: dict[str, Maker] = {  # those of the requirement
    "equal noise": normal,
    "seed effects": seed_effects,
    "t with 3 degrees": lambda random, shape: random.standard_t(3, shape),
    "exponential": lambda random, shape: random.exponential(size=shape),
    "lognormal sds": lognormal(0.7),
    "baseline 5x": rows(5, 0),
    "arm 6x": rows(6, 1),
    "outlier seeds": outlier_seeds,
    "outlier runs": outlier_runs,
    "shifted runs": shifted_runs,
}
HARDER: dict[str, Maker] = {  # between and beyond them
    "baseline 1.5x": rows(1.5, 0),
    "baseline 2x": rows(2, 0),
    "baseline 3x": rows(3, 0),
    "baseline 100x": rows(100, 0),
    "arm 2x": rows(2, 1),
    "arm 3x": rows(3, 1),
    "arm 100x": rows(100, 1),
    "two arms 4x": rows(4, 1, 2),
    "two arms 100x": rows(100, 1, 2),
    "three arms 3x": rows(3, 1, 2, 3),
    "three arms 10x": rows(10, 1, 2, 3),
    "three arms 100x": rows(100, 1, 2, 3),
    "baseline and arm 3x": rows(3, 0, 1),
    "lognormal sds, 1.0": lognormal(1.0),
    "groups of arms": groups,
}
# Pools of arms, as of a sweep of the learning rate: docs/studies/ratio-124m (six arms
# at 5e-4, of which one is compared with another, and three at 1e-3), three rates of
# four arms, five of three, and three of a single arm; each with its baseline.
SWEEPS: dict[str, tuple[pooled_variance.Pools, pooled_variance.Pairs]] = {
    "study": (
        (7, 4),
        ((1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 1), (8, 7), (9, 7), (10, 7)),
    ),
    **{
        name: (pools, pooled_power.stars(pools))
        for name, pools in {
            "three rates": (5, 5, 5),
            "five rates": (4, 4, 4, 4, 4),
            "one arm": (2, 2, 2),
        }.items()
    },
}
CHAINED = ("equal noise", "lognormal sds", "arm 6x")  # also with chains of partners


def rate_worlds(pools: pooled_variance.Pools) -> dict[str, Maker]:
    """Rates of unequal noise; the last pool is the highest rate."""
    low, high = range(pools[0]), range(sum(pools[:-1]), sum(pools))
    above = range(pools[0], sum(pools))

    def seed_effects_by_rate(random, shape):
        common = random.standard_normal((shape[0], len(pools), shape[2]))
        losses = normal(random, shape) + np.repeat(common, pools, axis=1)
        losses[:, high] *= 4
        return losses

    return {
        "equal noise": normal,
        **{f"highest rate {f}x": rows(f, *high) for f in (2, 4, 10)},
        **{f"all but the lowest {f}x": rows(f, *above) for f in (4, 10)},
        **{f"lowest rate {f}x": rows(f, *low) for f in (4, 10)},
        "seed effects by rate": seed_effects_by_rate,
    }


def harder_rate_worlds(pools: pooled_variance.Pools) -> dict[str, Maker]:
    """Noise that is unequal within every pool."""
    firsts = [sum(pools[:i]) for i in range(len(pools))]
    return {
        "baselines 2x": rows(2, *firsts),
        "baselines 5x": rows(5, *firsts),
        "an arm of each rate 6x": rows(6, *(first + 1 for first in firsts)),
        "lognormal sds": lognormal(0.7),
    }


def star(arms: int) -> pooled_variance.Pairs:
    """Every arm against the baseline."""
    return tuple((arm, 0) for arm in range(1, arms + 1))


def chain(arms: int) -> pooled_variance.Pairs:
    """Every arm against the one before."""
    return tuple((arm, arm - 1) for arm in range(1, arms + 1))


def false_finding_rates(
    arms: int, seeds: int, draws: int, worlds: dict[str, Maker], alpha: float = 0.05
) -> Iterator[tuple[str, float]]:
    """Share of matrices with any false finding, by world."""
    for number, (name, make) in enumerate(worlds.items()):
        designs = {name: star(arms)}
        if name in CHAINED:
            designs[f"{name}, chain"] = chain(arms)
        losses = make(np.random.default_rng(number), (draws, arms + 1, seeds))
        for label, pairs in designs.items():
            yield label, float(significant(losses, pairs, alpha).any(axis=1).mean())


def significant(
    losses: np.ndarray,
    pairs: pooled_variance.Pairs,
    alpha: float = 0.05,
    rounding: float = 0.0,
    pools: pooled_variance.Pools = (),
) -> np.ndarray:
    """(draws, comparisons) that the first step of pooled_test finds, many at a time."""
    _, arms, seeds = losses.shape
    means = losses.mean(axis=2)
    a, b = np.array(pairs).T
    found = pooled_variance.variances(losses - means[:, :, None], pairs, seeds, pools)
    d2 = seeds * np.square(means[:, a] - means[:, b])
    c = pooled_variance.critical_value(
        pooled_variance.nulls_of(arms, pairs, seeds, alpha, pools=pools), alpha
    )
    first = d2 > found.bound(alpha, rounding)
    first &= d2 > c * (found.pooled + seeds * rounding)
    return first | (d2 > found.bound_alone(alpha, len(pairs), rounding))


def sweep_findings(
    name: str, seeds: int, draws: int, worlds: dict[str, Maker], together: bool = False
) -> Iterator[tuple[str, float, float]]:
    """Share of matrices with any false finding, and with any at the highest rate.

    together: with all rates as one pool, which docs/statistics.md compares with.
    """
    pools, pairs = SWEEPS[name]
    high = [arm >= sum(pools[:-1]) for arm, _ in pairs]
    for number, (world, make) in enumerate(worlds.items()):
        losses = make(np.random.default_rng(number), (draws, sum(pools), seeds))
        found = significant(losses, pairs, pools=() if together else pools)
        yield world, found.any(axis=1).mean(), found[:, high].any(axis=1).mean()
