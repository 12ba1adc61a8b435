"""Simulated sweeps of the learning rate over arms that are all equal.

The loss is a parabola of the logarithm of the rate, the same for every arm, plus noise
for each run. So every finding is false. ``python -m
tests.gpt2.report.rate_choice`` prints the table of docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gpt2.report.arms import Arm
from gpt2.report.evidence import Rules, at_equal_steps
from gpt2.report.grades import (
    HARMFUL,
    SUPPORTED,
    Differences,
    Verdict,
    grade_family,
)
from gpt2.report.own_best import SweptArm, own_best
from gpt2.report.pooling import pool
from gpt2.report.results import COLUMNS, Run

RULES = Rules(margin=1e-6)  # in units of the noise: nothing is shown to be NEUTRAL
FINDINGS = (SUPPORTED, HARMFUL)
Array = np.ndarray


@dataclass(frozen=True, slots=True)
class World:
    """Equal arms at rates a factor of two apart.

    curvature: loss of a rate a factor of two from the optimum, in sds of a run.
    optimum: its place, in rates from the middle of the grid. noise: sd of a run at the
    rates above the middle, those below and in it having 1.
    """

    curvature: float
    optimum: float = 0.0
    arms: int = 3  # besides the baseline
    rates: int = 5
    seeds: int = 5
    tuning: int = 2
    noise: float = 1.0

    @property
    def exact(self) -> Array:
        """Loss by rate without noise."""
        places = np.arange(self.rates) - (self.rates - 1) / 2 - self.optimum
        losses: Array = 10 + self.curvature * np.square(places)
        return losses

    def draw(self, random: np.random.Generator, seeds: int) -> Array:
        """Losses (arms + 1, rates, seeds)."""
        noise = random.standard_normal((self.arms + 1, self.rates, seeds))
        noise[:, self.rates // 2 + 1 :] *= self.noise
        losses: Array = self.exact[:, None] + noise
        return losses


def grade(found: Sequence[tuple[Arm, Arm]]) -> list[Verdict]:
    """Grades of comparisons as one family, as in a report."""
    evidence = [at_equal_steps(arm, partner, RULES) for arm, partner in found]
    samples = [Differences.of(item) for item in evidence]
    return grade_family(samples, RULES, pool(found, evidence, RULES))


def cell(name: str, place: int, losses: Array) -> Arm:
    empty = dict.fromkeys(COLUMNS)
    at = {"learning_rate": float(2**place)}
    runs = [
        Run(
            {**empty, "seed": seed, "status": "done", "val_loss": float(loss)},
            {"coordinates": at},
        )
        for seed, loss in enumerate(losses)
    ]
    return Arm(None, f"{name}/learning_rate={place}", name, tuple(runs))


def study(losses: Array, tuning: Array) -> list[SweptArm]:
    """A study with the given losses of the verdict and of the choice."""
    found = []
    for index, (mine, chosen) in enumerate(zip(losses, tuning, strict=True)):
        cells = {float(2**k): cell(str(index), k, x) for k, x in enumerate(mine)}
        by_rate: Mapping[float, Sequence[float]] = {
            float(2**k): x.tolist() for k, x in enumerate(chosen)
        }
        found.append(SweptArm(str(index), cells, by_rate))
    return found


def is_found(verdicts: Sequence[Verdict]) -> bool:
    return any(verdict.grade in FINDINGS for verdict in verdicts)


def by_report(swept: Sequence[SweptArm]) -> list[Verdict]:
    """Verdicts at the own best, as in a report."""
    base, *arms = swept
    pairs = [(arm.arms[rate], base.arms[rate], "") for arm in arms for rate in arm.arms]
    best = own_best(swept, pairs, grade, RULES.alpha_of_look)
    return [comparison.verdict for comparison in best.comparisons]


def unguarded(swept: Sequence[SweptArm], fixed: bool = False) -> list[Verdict]:
    """Verdicts at the chosen rates alone. fixed: the baseline is not tuned, but at the
    middle rate."""
    base, *arms = swept
    middle = list(base.arms.values())[len(base.arms) // 2]
    partner = middle if fixed else base.at_best
    assert partner is not None
    return grade([(arm.at_best, partner) for arm in arms if arm.at_best is not None])


def false_findings(world: World, studies: int, seed: int = 0) -> dict[str, float]:
    """Share of studies with a false finding, by way of choosing and comparing, and the
    mean of the best loss minus its expectation, in sds of a run."""
    random = np.random.default_rng(seed)
    counts = dict.fromkeys(("report", "unguarded", "same seeds", "one side"), 0.0)
    counts |= {"optimism": 0.0}
    for _ in range(studies):
        losses = world.draw(random, world.seeds)
        swept = study(losses, world.draw(random, world.tuning))
        peeked = study(losses, losses)
        counts["report"] += is_found(by_report(swept))
        counts["unguarded"] += is_found(unguarded(swept))
        counts["same seeds"] += is_found(unguarded(peeked))
        counts["one side"] += is_found(unguarded(peeked, fixed=True))
        means = losses[1].mean(axis=1)
        counts["optimism"] += float(means.min() - world.exact[means.argmin()])
    return {name: count / studies for name, count in counts.items()}


WORLDS = {
    "no effect of the rate, 5 seeds": World(0.0),
    "1 sd, optimum between rates, 5 seeds": World(1.0, 0.25),
    "1 sd, optimum between rates, 10 seeds": World(1.0, 0.25, seeds=10),
    "2 sds, optimum between rates, 10 seeds": World(2.0, 0.25, seeds=10),
    "4 sds, optimum between rates, 5 seeds": World(4.0, 0.4),
    "no effect of the rate, high rates 4x, 5 seeds": World(0.0, noise=4.0),
    "1 sd, high rates 4x, 3 seeds": World(1.0, 0.25, seeds=3, noise=4.0),
    "1 sd, high rates 4x, 5 seeds": World(1.0, 0.25, noise=4.0),
    "1 sd, high rates 4x, 10 seeds": World(1.0, 0.25, seeds=10, noise=4.0),
    "1 sd, best at a noisy rate, high rates 4x, 10 seeds": World(
        1.0, 1.25, seeds=10, noise=4.0
    ),
    "4 sds, high rates 4x, 5 seeds": World(4.0, 0.4, noise=4.0),
}
STUDIES = 400


def main() -> None:
    for name, world in WORLDS.items():
        found = false_findings(world, STUDIES)
        *shares, optimism = found.values()
        cells = " | ".join(f"{100 * share:.1f}" for share in shares)
        print(f"| {name} | {cells} | {optimism:+.2f} |", flush=True)


if __name__ == "__main__":
    main()
