"""Grades of the comparisons of a matrix.

An arm is paired by seed with its partner; d = its loss minus the partner's, so a
negative d is better. The first grade that applies counts:

INVALID       a run is missing, failed, diverged or ended above a uniform guess, or a
              certificate failed; all of them where the A/A control differs from its
              baseline (gpt2/report/controls.py), or a baseline ended above a guess
UNMATCHED     budget or data differ: says nothing about the architecture
UNVERIFIED    the certificates were not run
INCONCLUSIVE  fewer than three seeds, or none of the tests below rejects
NEUTRAL       d lies within the margin (two one-sided t tests)
SUPPORTED     d is below 0 (pooled test on the paired differences)
HARMFUL       d is above 0

The pooled test (lib/pooled_variance.py) estimates the noise from all arms of a size and
learning rate over the same seeds. The paired t test decides if there are only two arms,
and at equal time, where each pair is read at its own time. p values are corrected for
all comparisons that could get a grade from them, including those still to be run, so
that no grade changes for the worse when another arm finishes: by Holm's method for t
tests, by simulation for the pooled test.

With many seeds d can be significantly different from 0 and significantly within the
margin at once: a trivial difference (one of the four outcomes in Lakens 2017,
"Equivalence Tests"). It is NEUTRAL, and the reason says that it is real. The margin was
declared not to matter, so grading such a difference SUPPORTED would let enough seeds
turn anything into a finding. Both kinds of claims keep their family-wise error, and the
planned number of seeds for an effect takes this into account (the tests simulate both).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2.report.evidence import Evidence, Rules
from gpt2.report.noise import Design, seeds_to_decide
from gpt2.report.pooling import Pooled
from gpt2.report.series import SeriesTest
from lib import stats

SUPPORTED, NEUTRAL, HARMFUL = "SUPPORTED", "NEUTRAL", "HARMFUL"
INCONCLUSIVE, UNMATCHED = "INCONCLUSIVE", "UNMATCHED"
INVALID, UNVERIFIED = "INVALID", "UNVERIFIED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Result of one comparison by one measure. Losses in nats, arm minus partner."""

    grade: str = INVALID
    reasons: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    differences: tuple[float, ...] = ()
    mean: float | None = None
    interval: stats.Interval | None = None  # 1 - alpha, for this arm alone
    family_interval: stats.Interval | None = None  # 1 - alpha for all arms together
    family: int | None = None  # comparisons that p values are corrected for
    bootstrap: stats.Interval | None = None
    p: float | None = None  # paired t test of this comparison alone
    p_holm: float | None = None
    p_pooled: float | None = None  # pooled test, corrected over all comparisons
    p_equivalent_holm: float | None = None
    test: int | None = None  # its number in a sequential family
    level: float | None = None  # of that test
    p_series: float | None = None  # p of that test, times alpha / level
    p_equivalent_series: float | None = None
    seeds_needed: int | None = None  # set if INCONCLUSIVE and not too many
    seconds: float | None = None  # the common time budget, where there is one

    @property
    def p_deciding(self) -> float | None:
        """Corrected p of the test that decides whether there is a difference."""
        if self.p_series is not None:
            return self.p_series
        return self.p_holm if self.p_pooled is None else self.p_pooled

    @property
    def p_equivalent(self) -> float | None:
        """Corrected p of the equivalence test."""
        if self.p_series is not None:
            return self.p_equivalent_series
        return self.p_equivalent_holm

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"p_deciding": self.p_deciding}


@dataclass(frozen=True, slots=True)
class Differences:
    """Paired differences, and the variance that rounding, and reading between
    evaluations, add to their mean."""

    differences: tuple[float, ...] = ()
    error: float = 0.0

    @classmethod
    def of(cls, evidence: Evidence) -> Differences:
        """Sample of a comparison; empty if invalid, which counts as still to be run."""
        if evidence.invalid:
            return cls()
        return cls(evidence.differences, evidence.error)


def grade_family(
    samples: Sequence[Differences],
    rules: Rules | None = None,
    together: Sequence[Pooled | None] | None = None,
) -> list[Verdict]:
    """Grades from paired differences alone, one sample per comparison.

    An empty sample is a comparison still to be run: it counts in the correction and
    gets no grade. together: outcomes of the pooled test, where it decides.
    """
    rules = rules or Rules()
    tests = [_tests(sample, rules) for sample in samples]
    unequal = stats.holm([1.0 if p is None else p for p, _ in tests])
    equal = stats.holm([1.0 if q is None else q for _, q in tests])
    verdicts = []
    for index, (sample, (p, _)) in enumerate(zip(samples, tests, strict=True)):
        verdict = ungraded(sample, rules, len(samples))
        if p is not None:
            p_holm, q_holm = unequal[index], equal[index]
            verdict = dataclasses.replace(
                verdict, p=p, p_holm=p_holm, p_equivalent_holm=q_holm
            )
            found = together[index] if together else None
            if found is not None and found.p is not None:
                interval = _around(verdict.mean, found.half_width)
                verdict = dataclasses.replace(
                    verdict, p_pooled=found.p, family_interval=interval
                )
        verdicts.append(dataclasses.replace(verdict, grade=_grade(verdict, rules)))
    return verdicts


def grade_test(
    sample: Differences, rules: Rules, test: SeriesTest | None, is_own: bool
) -> Verdict:
    """Grade of one comparison of a sequential family; without a test INCONCLUSIVE.

    is_own: these are the differences that were tested, and not those at equal time,
    which have the paired t test at the same level.
    """
    verdict, (p, q) = ungraded(sample, rules), _tests(sample, rules)
    if test is not None and p is not None and q is not None:
        scale = rules.alpha / test.level
        family = stats.t_interval(sample.differences, test.level, sample.error)
        if is_own:
            family = _around(verdict.mean, test.half_width)
        verdict = dataclasses.replace(
            verdict,
            family_interval=family,
            p=p,
            test=test.number,
            level=test.level,
            p_series=min(1.0, scale * (test.p if is_own else p)),
            p_equivalent_series=min(1.0, scale * q),
        )
    return dataclasses.replace(verdict, grade=_grade(verdict, rules))


def family_size(verdicts: Iterable[Verdict]) -> int:
    """Number of comparisons that the p values of one family are corrected for; 0 in a
    sequential family. UNMATCHED ones are not among them."""
    return max((verdict.family or 0 for verdict in verdicts), default=0)


def _around(mean: float | None, half: float) -> stats.Interval:
    assert mean is not None
    return stats.Interval(mean - half, mean + half)


def _tests(sample: Differences, rules: Rules) -> tuple[float | None, float | None]:
    """p of the paired t test and of the equivalence test; None with too few seeds."""
    values, error = sample.differences, sample.error
    if len(values) < stats.MIN_SEEDS:
        return None, None
    equivalent = stats.equivalence_test(values, rules.margin, error)
    return stats.t_test(values, error), equivalent


def ungraded(sample: Differences, rules: Rules, family: int = 1) -> Verdict:
    """Mean and intervals of a sample, without a grade."""
    values = sample.differences
    if not values:
        return Verdict()
    of_all = rules.alpha_of_look / family
    return Verdict(
        differences=values,
        mean=stats.describe(values).mean,
        interval=stats.t_interval(values, rules.alpha, sample.error),
        family_interval=stats.t_interval(values, of_all, sample.error),
    )


def _grade(verdict: Verdict, rules: Rules) -> str:
    if verdict.mean is None:
        return INVALID
    if verdict.p_deciding is None:
        return INCONCLUSIVE
    assert verdict.p_equivalent is not None
    # Equivalence first: a difference within the margin is NEUTRAL even if it is not 0.
    # Each kind of claim keeps its own family-wise error, whatever the order.
    if verdict.p_equivalent < rules.alpha_of_look:
        return NEUTRAL
    if verdict.p_deciding < rules.alpha_of_look:
        return SUPPORTED if verdict.mean < 0 else HARMFUL
    return INCONCLUSIVE


def finished(verdict: Verdict, evidence: Evidence, design: Design) -> Verdict:
    """Apply grades that outrank the tests; add reasons and the seeds needed."""
    rules = design.test.rules
    bootstrap = stats.bootstrap_interval(verdict.differences or [0.0], rules.alpha)
    verdict = dataclasses.replace(verdict, bootstrap=bootstrap)
    for grade, reasons in (
        (INVALID, evidence.invalid),
        (UNMATCHED, evidence.unmatched),
        (UNVERIFIED, evidence.unverified),
    ):
        if reasons:
            return dataclasses.replace(verdict, grade=grade, reasons=reasons)
    between = _between(evidence)
    reasons = (
        *_disagreement(verdict, rules),
        *_narrow(verdict, design),
        *_rounded(evidence, rules),
        *between,
    )
    if verdict.grade == NEUTRAL:
        reasons = _trivial(verdict, rules) + reasons
    if verdict.grade != INCONCLUSIVE or between:
        return dataclasses.replace(verdict, reasons=reasons)
    text, seeds = _seeds_text(verdict.differences, design)
    return dataclasses.replace(verdict, reasons=(text, *reasons), seeds_needed=seeds)


def _seeds_text(differences: Sequence[float], design: Design) -> tuple[str, int | None]:
    """Reason for INCONCLUSIVE, and the number of seeds needed if known."""
    found = seeds_to_decide(differences, design)
    text, seeds = "the noise at this size is unknown", None
    if found is not None:
        seeds, basis = found
        many = f"more than {stats.MAX_SEEDS}" if seeds is None else f"about {seeds}"
        text = f"would need {many} seeds at {basis}"
    few = {1: "one seed is", 2: "two seeds are"}.get(len(differences))
    if few is not None:
        text = f"{few} not enough for a verdict (at least {stats.MIN_SEEDS}); {text}"
    return text, seeds


def _trivial(verdict: Verdict, rules: Rules) -> tuple[str, ...]:
    """Reason if a NEUTRAL difference is significantly different from 0."""
    assert verdict.mean is not None and verdict.p_deciding is not None
    if verdict.p_deciding >= rules.alpha_of_look:
        return ()
    way = "improvement" if verdict.mean < 0 else "loss"
    return (f"a real {way}, but smaller than the margin of {rules.margin:g}",)


def _disagreement(verdict: Verdict, rules: Rules) -> tuple[str, ...]:
    """Reason with both tests of a difference if they disagree."""
    pooled, holm, alpha = verdict.p_pooled, verdict.p_holm, rules.alpha_of_look
    if pooled is None or holm is None or (pooled < alpha) == (holm < alpha):
        return ()
    tests = ("pooled", "paired t")
    found, other = tests if pooled < alpha else tests[::-1]
    return (
        f"the {found} test finds a difference and the {other} test does not "
        f"(p {pooled:.3f} pooled, which decides; {holm:.3f} paired t with Holm)",
    )


def _narrow(verdict: Verdict, design: Design) -> tuple[str, ...]:
    """Reason if a finding spreads less than half as much over the seeds as the noise
    by which it was found: its own interval is surer than the test."""
    interval, pooled = verdict.family_interval, design.pooled_sd
    if verdict.grade not in (SUPPORTED, HARMFUL) or verdict.p_pooled is None:
        return ()
    sd = stats.describe(verdict.differences).sd
    if interval is None or pooled is None or 2 * sd >= pooled:
        return ()
    half = (interval.high - interval.low) / 2
    return (
        f"its differences have a spread of {sd:.4f}, those of all arms {pooled:.4f}: "
        f"its narrow interval may be chance; over all arms together it is ±{half:.4f}",
    )


def _rounded(evidence: Evidence, rules: Rules) -> tuple[str, ...]:
    """Reason if losses are so coarse that rounding matters compared with the margin."""
    if evidence.resolution < rules.margin / 100:
        return ()
    return (
        f"losses are multiples of {evidence.resolution:g} (taken into account): a "
        "difference of that size proves nothing",
    )


def _between(evidence: Evidence) -> tuple[str, ...]:
    """Reason if reading between evaluations matters compared with the seeds."""
    sample = stats.describe(evidence.differences)
    if sample.n < stats.MIN_SEEDS or 10 * evidence.reading <= sample.sd**2 / sample.n:
        return ()
    return (
        "losses are read between evaluations, with an error of about "
        f"{math.sqrt(evidence.reading):.4f} nats (taken into account), which more "
        "seeds do not lower: evaluate more often (EVAL_INTERVAL), or give runs a "
        "TIME_BUDGET",
    )
