"""Grades: what a comparison of two arms allows one to say.

An arm is paired by seed with its partner; d = its loss minus the partner's, so a
negative d is better. Over the comparisons of a matrix, in this order:

INVALID       a run is missing, failed, diverged or ended above a uniform guess, or a
              certificate failed; all of them where the A/A control differs from its
              baseline (gpt2/report/controls.py), or a baseline ended above a guess
UNMATCHED     budget or data differ: no verdict on the architecture
UNVERIFIED    the certificates were not run
INCONCLUSIVE  one seed, or no test below is decided; says how many seeds would do
NEUTRAL       d lies within the margin (two one-sided t tests)
SUPPORTED     d is below 0 (t test on the paired differences)
HARMFUL       d is above 0

p values are Holm-corrected over all comparisons that could get a grade from them,
those still to be run included, so that no grade falls when another arm finishes.

With many seeds d can be surely not 0 and surely within the margin at once: a trivial
difference (one of the four outcomes in Lakens 2017, "Equivalence Tests"). It is
NEUTRAL, and the reason says that it is real. The margin is what was declared not to
matter, so to call such a difference SUPPORTED would let enough seeds turn anything
into a finding. Both kinds of claims keep their family-wise error, and the number of
seeds planned for an effect reckons with it (the tests simulate both).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpt2.report.arms import Arm, Change, changes_between, group_arms, partner_of
from gpt2.report.controls import Control, controls_of, void_reasons
from gpt2.report.evidence import Evidence, Rules, at_equal_steps, at_equal_time
from gpt2.report.results import Matrix
from lib import stats

SUPPORTED, NEUTRAL, HARMFUL = "SUPPORTED", "NEUTRAL", "HARMFUL"
INCONCLUSIVE, UNMATCHED = "INCONCLUSIVE", "UNMATCHED"
INVALID, UNVERIFIED = "INVALID", "UNVERIFIED"
# Standard deviation over seeds of a 124M model's validation loss, nats: the range
# found in the literature. Used for planning only, where replicas are missing.
KNOWN_NOISE = (0.0013, 0.0019)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One comparison by one measure. Losses in nats, arm minus partner."""

    grade: str = INVALID
    reasons: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    differences: tuple[float, ...] = ()
    mean: float | None = None
    interval: stats.Interval | None = None  # 1 - alpha, for this arm alone
    family_interval: stats.Interval | None = None  # 1 - alpha for all arms together
    bootstrap: stats.Interval | None = None
    p: float | None = None
    p_holm: float | None = None
    p_equivalent_holm: float | None = None
    seeds_needed: int | None = None  # only INCONCLUSIVE; None there: too many
    seconds: float | None = None  # the common time budget, where there is one

    def to_json(self) -> dict[str, Any]:
        data = dataclasses.asdict(self)
        for name in ("interval", "family_interval", "bootstrap"):
            found = getattr(self, name)
            data[name] = None if found is None else [found.low, found.high]
        return data


@dataclass(frozen=True, slots=True)
class Comparison:
    """An arm against its partner, at equal steps and at equal time."""

    arm: Arm
    partner: Arm
    note: str
    changes: list[Change]
    at_steps: Verdict
    at_time: Verdict


@dataclass(frozen=True, slots=True)
class Noise:
    """Spread over the seeds of an arm that has no partner."""

    arm: Arm
    sample: stats.Sample
    interval: stats.Interval


@dataclass(frozen=True, slots=True)
class Judgement:
    """Everything the report says about a matrix."""

    rules: Rules
    arms: list[Arm]
    comparisons: list[Comparison]
    noise: list[Noise]
    notes: dict[str, str]  # label of an arm without partner -> why
    controls: list[Control] = field(default_factory=list)
    void: tuple[str, ...] = ()  # why no verdict of this matrix stands

    def of(self, arm: Arm) -> Comparison | None:
        return next((c for c in self.comparisons if c.arm is arm), None)

    def to_json(self) -> dict[str, Any]:
        """As plain data, under "verdicts" in summary.json."""
        return {
            "rules": dataclasses.asdict(self.rules),
            "noise": [
                {
                    **_key(noise.arm),
                    "seeds": noise.sample.n,
                    "sd": noise.sample.sd,
                    "interval": [noise.interval.low, noise.interval.high],
                }
                for noise in self.noise
            ],
            "comparisons": [
                {
                    **_key(c.arm),
                    "partner": _key(c.partner),
                    "note": c.note,
                    "at_equal_steps": c.at_steps.to_json(),
                    "at_equal_time": c.at_time.to_json(),
                }
                for c in self.comparisons
            ],
            "controls": [
                {
                    **_key(c.arm),
                    "partner": _key(c.baseline),
                    "grade": c.grade,
                    "reasons": list(c.reasons),
                    "seeds": list(c.seeds),
                    "differences": list(c.differences),
                    "mean": c.mean,
                }
                for c in self.controls
            ],
            "void": list(self.void),
        }


def _key(arm: Arm) -> dict[str, Any]:
    return {"step": arm.step, "name": arm.name}


def judge(matrix: Matrix, rules: Rules | None = None) -> Judgement:
    """Grade every arm of a matrix that has a comparison partner."""
    rules = rules or Rules()
    arms = group_arms(matrix)
    controls = controls_of(arms, rules)
    pairs, notes = [], {}
    tested = [arm for arm in arms if not arm.is_control]
    for arm in tested:
        partner, note = partner_of(arm, arms)
        if partner is not None:
            pairs.append((arm, partner, note))
        elif note:
            notes[arm.label] = note
    bases = [arm for arm in tested if all(arm is not a for a, _, _ in pairs)]
    noise = _noise(bases)
    void = void_reasons(bases if pairs else [], controls)
    comparisons = [_voided(c, void) for c in compare(pairs, rules, noise)]
    return Judgement(rules, arms, comparisons, noise, notes, controls, void)


def _voided(comparison: Comparison, void: tuple[str, ...]) -> Comparison:
    """INVALID by what spoils the whole matrix, if anything does."""
    if not void:
        return comparison
    verdicts = (comparison.at_steps, comparison.at_time)
    steps, time = (
        dataclasses.replace(v, grade=INVALID, reasons=(*void, *v.reasons))
        for v in verdicts
    )
    return dataclasses.replace(comparison, at_steps=steps, at_time=time)


def compare(
    pairs: Sequence[tuple[Arm, Arm, str]],
    rules: Rules,
    noise: Sequence[Noise] | None = None,
) -> list[Comparison]:
    """Grade (arm, partner, note) triples as one family. noise: of a baseline; by
    default of the partners."""
    if noise is None:
        noise = _noise([partner for _, partner, _ in pairs])
    paired = [(arm, partner) for arm, partner, _ in pairs]
    at_steps = _grade_all(paired, at_equal_steps, rules, noise)
    at_time = _grade_all(paired, at_equal_time, rules, noise)
    return [
        Comparison(arm, partner, note, changes_between(partner, arm), steps, time)
        for (arm, partner, note), steps, time in zip(
            pairs, at_steps, at_time, strict=True
        )
    ]


def _noise(arms: Sequence[Arm]) -> list[Noise]:
    found = []
    for arm in arms:
        losses = arm.values("val_loss")
        if len(losses) > 1 and min(losses) < max(losses):
            sample = stats.describe(losses)
            interval = stats.sd_interval(sample)
            assert interval is not None
            found.append(Noise(arm, sample, interval))
    return found


# ---- grades ---------------------------------------------------------------------


def _grade_all(
    pairs: Sequence[tuple[Arm, Arm]],
    measure: Callable[[Arm, Arm, Rules], Evidence],
    rules: Rules,
    noise: Sequence[Noise],
) -> list[Verdict]:
    evidence = [measure(arm, partner, rules) for arm, partner in pairs]
    family = [i for i, e in enumerate(evidence) if not e.unmatched]
    samples = [() if evidence[i].invalid else evidence[i].differences for i in family]
    graded = dict(zip(family, grade_family(samples, rules), strict=True))
    verdicts = []
    for index, item in enumerate(evidence):
        verdict = graded.get(index, Verdict())
        if verdict.mean is None:
            verdict = _alone(item.differences, rules)
        verdict = dataclasses.replace(verdict, seeds=item.seeds, seconds=item.seconds)
        verdicts.append(_finish(verdict, item, rules, noise, len(family)))
    return verdicts


def grade_family(
    samples: Sequence[Sequence[float]], rules: Rules | None = None
) -> list[Verdict]:
    """Grades from paired differences alone, one sample a comparison.

    An empty sample stands for a comparison still to come: it counts in the
    correction and gets no grade of its own.
    """
    rules = rules or Rules()
    tests = [_tests(sample, rules) for sample in samples]
    unequal = stats.holm([1.0 if p is None else p for p, _ in tests])
    equal = stats.holm([1.0 if q is None else q for _, q in tests])
    verdicts = []
    for sample, (p, _), p_holm, q_holm in zip(
        samples, tests, unequal, equal, strict=True
    ):
        verdict = _alone(sample, rules, len(samples))
        if p is not None:
            verdict = dataclasses.replace(
                verdict, p=p, p_holm=p_holm, p_equivalent_holm=q_holm
            )
        verdicts.append(dataclasses.replace(verdict, grade=_grade(verdict, rules)))
    return verdicts


def _tests(sample: Sequence[float], rules: Rules) -> tuple[float | None, float | None]:
    if len(sample) < 2:
        return None, None
    return stats.t_test(sample), stats.equivalence_test(sample, rules.margin)


def _alone(sample: Sequence[float], rules: Rules, family: int = 1) -> Verdict:
    """Mean and intervals of a sample, without a grade."""
    if not sample:
        return Verdict()
    return Verdict(
        differences=tuple(sample),
        mean=stats.describe(sample).mean,
        interval=stats.t_interval(sample, rules.alpha),
        family_interval=stats.t_interval(sample, rules.alpha / family),
    )


def _grade(verdict: Verdict, rules: Rules) -> str:
    if verdict.mean is None:
        return INVALID
    if verdict.p_holm is None:
        return INCONCLUSIVE
    assert verdict.p_equivalent_holm is not None
    if verdict.p_equivalent_holm < rules.alpha:
        return NEUTRAL
    if verdict.p_holm < rules.alpha:
        return SUPPORTED if verdict.mean < 0 else HARMFUL
    return INCONCLUSIVE


def _finish(
    verdict: Verdict,
    evidence: Evidence,
    rules: Rules,
    noise: Sequence[Noise],
    family: int,
) -> Verdict:
    """What outranks the tests, with its reasons; and the seeds still needed."""
    bootstrap = stats.bootstrap_interval(verdict.differences or [0.0], rules.alpha)
    verdict = dataclasses.replace(verdict, bootstrap=bootstrap)
    for grade, reasons in (
        (INVALID, evidence.invalid),
        (UNMATCHED, evidence.unmatched),
        (UNVERIFIED, evidence.unverified),
    ):
        if reasons:
            return dataclasses.replace(verdict, grade=grade, reasons=reasons)
    if verdict.grade == NEUTRAL:
        return dataclasses.replace(verdict, reasons=_trivial(verdict, rules))
    if verdict.grade != INCONCLUSIVE:
        return verdict
    seeds, basis = seeds_to_decide(verdict.differences, rules, noise, max(family, 1))
    many = f"more than {stats.MAX_SEEDS}" if seeds is None else f"about {seeds}"
    text = f"{many} seeds would decide, {basis}"
    if len(verdict.differences) == 1:
        text = f"one seed decides nothing; {text}"
    return dataclasses.replace(verdict, reasons=(text,), seeds_needed=seeds)


def _trivial(verdict: Verdict, rules: Rules) -> tuple[str, ...]:
    """A reason if a NEUTRAL difference is nevertheless one."""
    assert verdict.mean is not None and verdict.p_holm is not None
    if verdict.p_holm >= rules.alpha:
        return ()
    way = "better" if verdict.mean < 0 else "worse"
    return (f"surely {way}, and surely by less than the margin of {rules.margin:g}",)


def seeds_to_decide(
    differences: Sequence[float], rules: Rules, noise: Sequence[Noise], family: int
) -> tuple[int | None, str]:
    """Pairs that would show the difference, or its smallness, if it is as observed.

    Two values say too little of their own spread: the noise floor stands in for it
    (sd of a difference of two runs: sqrt(2) times that of one), and without
    replicas of a baseline the upper end of KNOWN_NOISE. Returns the number, None if
    over stats.MAX_SEEDS, and in words what it is based on.
    """
    sample = stats.describe(differences)
    floor = max((n.sample.sd for n in noise), default=KNOWN_NOISE[1])
    sd, basis = sample.sd, "by the spread of its own differences"
    of_runs = math.sqrt(2) * floor
    if sample.n < 2 or (sample.n == 2 and sd < of_runs):
        sd = of_runs
        basis = "by the noise floor" if noise else "by the noise known at 124M"
    alpha = rules.alpha / family
    ways = (
        stats.seeds_for_difference(sample.mean, sd, alpha, rules.power),
        stats.seeds_for_equivalence(sample.mean, rules.margin, sd, alpha, rules.power),
    )
    found = [n for n in ways if n is not None]
    return (max(min(found), sample.n + 1) if found else None), basis
