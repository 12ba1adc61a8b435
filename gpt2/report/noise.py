"""Noise over seeds, and the number of seeds that a verdict needs at that noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gpt2.report.arms import Arm
from gpt2.report.evidence import Rules
from lib import pooled_power, pooled_variance, sequential, stats

# Standard deviation over seeds of the validation loss of GPT-2 124M, nats: the range in
# the literature. Used only for planning without replicas, and only for models of that
# size: the noise of a tiny model is ten times as large.
KNOWN_NOISE = (0.0013, 0.0019)
KNOWN_PARAMETERS = (100e6, 150e6)


@dataclass(frozen=True, slots=True)
class Noise:
    """Spread over the seeds of a baseline."""

    arm: Arm
    sample: stats.Sample
    interval: stats.Interval


def noise_of(arms: Sequence[Arm]) -> list[Noise]:
    """Noise of each arm that has at least two seeds with different losses."""
    found = []
    for arm in arms:
        losses = arm.values("val_loss")
        if len(losses) > 1 and min(losses) < max(losses):
            sample = stats.describe(losses)
            interval = stats.sd_interval(sample)
            assert interval is not None
            found.append(Noise(arm, sample, interval))
    return found


def is_known(parameters: float | None) -> bool:
    """True if KNOWN_NOISE applies to a model of this size."""
    low, high = KNOWN_PARAMETERS
    return parameters is not None and low <= parameters <= high


def known_noise_of(arms: Sequence[Arm]) -> float | None:
    """Upper end of KNOWN_NOISE if all the arms have that size, else None."""
    sizes = [arm.mean("parameters") for arm in arms]
    return KNOWN_NOISE[1] if sizes and all(map(is_known, sizes)) else None


@dataclass(frozen=True, slots=True)
class Family:
    """Comparisons that share the error: their number or, in a sequential family, the
    number of a test and its level. pools: among how many the noise is divided."""

    number: int
    level: float | None = None
    pools: int = 1

    @property
    def can_pool(self) -> bool:
        """Whether the comparisons have arms enough for the pooled test."""
        return self.number + self.pools >= pooled_variance.MIN_ARMS


@dataclass(frozen=True, slots=True)
class PlannedTest:
    """The test that will decide each comparison of a family. Standard deviations are
    those of a paired difference."""

    rules: Rules
    family: Family
    is_pooled: bool = True

    def power(self, delta: float, sd: float, seeds: int, margin: float) -> float:
        """To detect ``delta``; margin as for stats.power_of_difference."""
        alpha, family = self.rules.alpha_of_look, self.family
        number, level = family.number, family.level
        if level is not None:
            rows = number + 1 if self.is_pooled else 2
            return sequential.power(delta, sd, seeds, rows, alpha, level, margin)
        if self.is_pooled and family.can_pool:
            pools = family.pools
            return pooled_power.power(delta, sd, seeds, number, alpha, margin, pools)
        return stats.power_of_difference(delta, sd, seeds, alpha / number, margin)

    def seeds_to_find(
        self, delta: float, sd: float, margin: float
    ) -> stats.Seeds | None:
        """Numbers of seeds that detect ``delta`` with the power of the rules."""

        def chance(seeds: int) -> float:
            return self.power(delta, sd, seeds, margin)

        if abs(delta) >= margin:
            return stats.seeds_needed(chance, self.rules.power)
        is_slow = self.is_pooled and self.family.can_pool
        numbers = pooled_power.SEED_NUMBERS if is_slow else stats.SEED_NUMBERS
        return stats.seed_window(chance, self.rules.power, numbers)

    def seeds_to_exclude(self, delta: float, sd: float) -> stats.Seeds | None:
        """Numbers of seeds that show a true ``delta`` to be within the margin."""
        rules, family = self.rules, self.family
        alpha = family.level or rules.alpha_of_look / family.number
        return stats.seeds_for_equivalence(delta, rules.margin, sd, alpha, rules.power)


@dataclass(frozen=True, slots=True)
class Design:
    """Inputs to the number of seeds of a comparison, except its differences."""

    test: PlannedTest
    runs_sd: float | None  # of one run, from replicas of a baseline
    runs_origin: str = "the noise floor"
    pooled_sd: float | None = None  # of a paired difference, over all arms of its pool
    pool: str = ""  # name of that pool


def seeds_to_decide(
    differences: Sequence[float], design: Design
) -> tuple[int | None, str] | None:
    """Number of seeds to show the observed difference, or that it is within the margin,
    and the basis of that number in words; None if the noise is unknown.

    The number is None if it exceeds stats.MAX_SEEDS. Two differences are too few to
    estimate their spread, so the larger of it and the noise floor is used (sd of a
    difference of two runs: sqrt(2) times that of one); from three on, the larger of
    their own and the pooled spread.
    """
    found = _spread(stats.describe(differences), design)
    if found is None:
        return None
    sd, basis = found
    delta, test = stats.describe(differences).mean, design.test
    ways = (test.seeds_to_find(delta, sd, 0.0), test.seeds_to_exclude(delta, sd))
    numbers = [way.first for way in ways if way is not None]
    return (max(min(numbers), len(differences) + 1) if numbers else None), basis


def _spread(sample: stats.Sample, design: Design) -> tuple[float, str] | None:
    """Standard deviation of a paired difference for planning, and its origin."""
    own = "the spread of its own differences"
    # Var(a - b) = 2 Var(a) for independent runs. Pairing by seed can only lower it, as
    # long as batches and initial weights act alike on both arms: this plans too many
    # seeds rather than too few.
    of_runs = None if design.runs_sd is None else math.sqrt(2) * design.runs_sd
    if sample.n < 2:
        return None if of_runs is None else (of_runs, design.runs_origin)
    if sample.n < stats.MIN_SEEDS:
        larger = of_runs is not None and of_runs > sample.sd
        return (of_runs, design.runs_origin) if larger and of_runs else (sample.sd, own)
    if design.pooled_sd is not None and design.pooled_sd > sample.sd:
        where = f" at {design.pool}" if design.pool else ""
        return design.pooled_sd, f"the spread of all arms' differences{where}"
    return sample.sd, own
