"""How many seeds a question takes: noise measured in results, or known from 124M."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpt2.report.evidence import Rules
from gpt2.report.verdicts import INVALID, KNOWN_NOISE, UNMATCHED, Judgement
from lib import stats


@dataclass(frozen=True, slots=True)
class Spread:
    """Standard deviation of a paired difference, nats, and where it is from."""

    sd: float
    origin: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Seeds an arm for one spread; None: more than stats.MAX_SEEDS."""

    spread: Spread
    find: int | None  # a difference of delta, as SUPPORTED or HARMFUL
    exclude: int | None  # that it reaches the margin, if there is none


def known_spreads() -> list[Spread]:
    """The range found in the literature for one run, for a difference of two."""
    return [of_runs(sd, f"124M in the literature, run sd {sd}") for sd in KNOWN_NOISE]


def of_runs(sd: float, origin: str) -> Spread:
    """From the spread of single runs, as if pairing by seed took nothing off."""
    return Spread(math.sqrt(2) * sd, origin)


def measured_spread(judged: Judgement) -> Spread | None:
    """From paired differences of valid comparisons, else from a baseline's seeds."""
    samples = [
        c.at_steps.differences
        for c in judged.comparisons
        if c.at_steps.grade != INVALID and len(c.at_steps.differences) > 1
    ]
    sd = stats.pooled_sd(samples)
    if sd is not None:
        degrees = sum(len(sample) - 1 for sample in samples)
        return Spread(sd, f"paired differences in these results ({degrees} df)")
    if judged.noise:
        noise = max(judged.noise, key=lambda n: n.sample.sd)
        seeds = f"{noise.sample.n} seeds of {noise.arm.label} in these results"
        return of_runs(noise.sample.sd, seeds)
    return None


def comparisons_of(judged: Judgement) -> int:
    """Size of the family that Holm's correction counts."""
    return sum(c.at_steps.grade != UNMATCHED for c in judged.comparisons)


def answer(spread: Spread, delta: float, arms: int, rules: Rules) -> Answer:
    """With the strictest step of Holm's correction, so never too few."""
    alpha, margin = rules.alpha / arms, rules.margin
    return Answer(
        spread,
        stats.seeds_for_difference(delta, spread.sd, alpha, rules.power, margin),
        stats.seeds_for_equivalence(0.0, margin, spread.sd, alpha, rules.power),
    )
