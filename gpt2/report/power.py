"""Number of seeds to plan, from the noise in results or the known noise at 124M."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gpt2.report.evidence import Rules
from gpt2.report.grades import INVALID
from gpt2.report.noise import KNOWN_NOISE, Family, PlannedTest
from gpt2.report.pooling import pools_of
from gpt2.report.verdicts import Judgement
from lib import stats


@dataclass(frozen=True, slots=True)
class Spread:
    """Standard deviation of a paired difference, nats, and its origin."""

    sd: float
    origin: str


@dataclass(frozen=True, slots=True)
class SeedPlan:
    """Numbers of seeds for one spread; None: no number up to stats.MAX_SEEDS."""

    spread: Spread
    find: stats.Seeds | None  # detect a difference of delta (SUPPORTED or HARMFUL)
    exclude: stats.Seeds | None  # show that a difference of 0 is within the margin


def known_spreads() -> list[Spread]:
    """Range in the literature, converted from one run to a difference of two."""
    return [of_runs(sd, f"124M in the literature, run sd {sd}") for sd in KNOWN_NOISE]


def of_runs(sd: float, origin: str = "given") -> Spread:
    """Convert the sd of single runs, assuming that pairing does not reduce it."""
    return Spread(math.sqrt(2) * sd, origin)  # Var(a - b) = 2 Var(a) if independent


def measured_spreads(judged: Judgement) -> list[Spread]:
    """Spread of the paired differences of valid comparisons, by pool, else of a
    baseline's seeds."""
    pairs = [(c.arm, c.partner) for c in judged.comparisons]
    samples: dict[str, list[Sequence[float]]] = {}
    for pool, c in zip(pools_of(pairs), judged.comparisons, strict=True):
        if c.at_steps.grade != INVALID and len(c.at_steps.differences) > 1:
            samples.setdefault(pool, []).append(c.at_steps.differences)
    found = []
    for pool, of_pool in samples.items():
        where = f"these results at {pool}" if pool else "these results"
        degrees = sum(len(sample) - 1 for sample in of_pool)
        sd = stats.pooled_sd(of_pool)
        if sd is not None:
            found.append(Spread(sd, f"paired differences in {where} ({degrees} df)"))
    if not found and judged.noise:
        noise = max(judged.noise, key=lambda n: n.sample.sd)
        seeds = f"{noise.sample.n} seeds of {noise.arm.label} in these results"
        return [of_runs(noise.sample.sd, seeds)]
    return found


def plan_seeds(
    spread: Spread, delta: float, arms: int | Family = 1, rules: Rules | None = None
) -> SeedPlan:
    """Numbers of seeds to detect ``delta`` nats in any of ``arms`` comparisons.

    Under the strictest step of Holm's correction, so never too few.
    """
    family = Family(arms) if isinstance(arms, int) else arms
    test = PlannedTest(rules or Rules(), family)
    return SeedPlan(
        spread,
        test.seeds_to_find(delta, spread.sd, test.rules.margin),
        test.seeds_to_exclude(0.0, spread.sd),
    )
