"""Verdicts of a matrix: each arm is paired by seed with its partner and graded.

At equal updates and at equal time, by gpt2/report/grades.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpt2.report.arms import (
    Arm,
    Change,
    NotedPair,
    Pair,
    changes_between,
    group_arms,
    partner_of,
    tuning_arms,
)
from gpt2.report.controls import Control, controls_of, void_reasons
from gpt2.report.evidence import (
    Evidence,
    Rules,
    at_equal_steps,
    at_equal_time,
    time_budget,
)
from gpt2.report.grades import (
    INVALID,
    Differences,
    Verdict,
    finished,
    grade_family,
    grade_test,
    ungraded,
)
from gpt2.report.noise import (
    Design,
    Family,
    Noise,
    PlannedTest,
    known_noise_of,
    noise_of,
)
from gpt2.report.own_best import (
    OwnBest,
    SweptArm,
    deciding,
    own_best,
    swept_arms,
    untuned,
)
from gpt2.report.pooling import Pooled, family_of, pool
from gpt2.report.results import MatrixResults
from gpt2.report.series import (
    LEDGER_FILE,
    ArmSeries,
    Tests,
    locked,
    record,
    series_for,
    tests_of,
)
from gpt2.report.size_trends import size_trends
from gpt2.report.verdict_rules import rules_for
from gpt2.settings.checks import SWEPT_RATES


@dataclass(frozen=True, slots=True)
class Comparison:
    """An arm and its partner, compared at equal updates and at equal time.

    Runs with a time budget end after unequal updates: both verdicts are then that of
    their final losses.
    """

    arm: Arm
    partner: Arm
    note: str
    changes: list[Change]
    at_steps: Verdict
    at_time: Verdict

    @property
    def is_timed(self) -> bool:
        """True if the runs of both arms have the same time budget."""
        return time_budget(self.arm, self.partner) is not None


def only_timed(comparisons: Iterable[Comparison]) -> bool:
    """True if there are comparisons, and all of them are of runs with a time budget."""
    found = list(comparisons)
    return bool(found) and all(comparison.is_timed for comparison in found)


@dataclass(frozen=True, slots=True)
class Judgement:
    """All verdicts of a matrix and their basis."""

    rules: Rules
    arms: list[Arm]
    comparisons: list[Comparison]
    noise: list[Noise]
    notes: dict[str, str]  # label of an arm without partner -> why
    controls: list[Control] = field(default_factory=list)
    void: tuple[str, ...] = ()  # reasons that make all verdicts INVALID
    own_best: OwnBest = field(default_factory=OwnBest)  # of LR_SWEEP
    series: ArmSeries | None = None  # of a sequential family

    def of(self, arm: Arm) -> Comparison | None:
        return next((c for c in self.comparisons if c.arm is arm), None)

    def to_json(self) -> dict[str, Any]:
        """Plain data, as under "verdicts" in summary.json."""
        trends = size_trends(self)
        return {
            "rules": dataclasses.asdict(self.rules),
            "noise": [
                {
                    **noise.arm.key,
                    "seeds": noise.sample.n,
                    "sd": noise.sample.sd,
                    "interval": noise.interval,
                }
                for noise in self.noise
            ],
            "comparisons": [
                {
                    **c.arm.key,
                    "partner": c.partner.key,
                    "note": c.note,
                    "at_equal_steps": c.at_steps.to_json(),
                    "at_equal_time": c.at_time.to_json(),
                }
                for c in self.comparisons
            ],
            "controls": [
                {
                    **c.arm.key,
                    "partner": c.baseline.key,
                    "grade": c.grade,
                    "reasons": list(c.reasons),
                    "seeds": list(c.seeds),
                    "differences": list(c.differences),
                    "mean": c.mean,
                }
                for c in self.controls
            ],
            "void": list(self.void),
            "series": None if self.series is None else self.series.to_json(),
            **({"own_best": best.to_json()} if (best := self.own_best) else {}),
            **({"sizes": [t.to_json() for t in trends]} if trends else {}),
        }


def judge_and_record(matrix: MatrixResults, rules: Rules | None = None) -> Judgement:
    """Grade as ``judge``, and record the tests of a sequential family before anyone
    sees their results. Raises OSError if they cannot be recorded."""
    rules = rules or rules_for(None, matrix.runs)
    if not (rules.is_sequential or (matrix.root / LEDGER_FILE).exists()):
        return judge(matrix, rules)
    with locked(matrix.root):
        judged = judge(matrix, rules)
        if judged.series is not None:
            record(matrix.root, judged.series)
    return judged


def judge(matrix: MatrixResults, rules: Rules | None = None) -> Judgement:
    """Grade every arm of a matrix that has a comparison partner.

    rules: by default those that its runs have recorded, as for `make report RESULTS=`.
    Raises ValueError if the recorded series of a sequential family is damaged or
    contradicts the rules.
    """
    rules = rules or rules_for(None, matrix.runs)
    series, rules = series_for(matrix.root, rules)
    arms = group_arms(matrix)
    controls = controls_of(arms, rules)
    tested = [arm for arm in arms if not arm.is_control]
    found = [(arm, *partner_of(arm, tested)) for arm in tested]
    pairs = [(arm, other, note) for arm, other, note in found if other is not None]
    alone = [(arm, note) for arm, other, note in found if other is None]
    bases = [arm for arm, _ in alone]
    swept = swept_arms(tested, tuning_arms(matrix))
    if swept and series is not None:
        raise ValueError(SWEPT_RATES)
    decisive = deciding(bases, swept)
    noise = noise_of(decisive or bases)
    void = void_reasons(decisive if pairs else [], controls)
    tests = None
    if series is not None:
        paired = [(arm, partner) for arm, partner, _ in pairs]
        evidence = [at_equal_steps(*pair, rules) for pair in paired if not void]
        tests = tests_of(series, paired, evidence, rules)
    return Judgement(
        rules=rules,
        arms=arms,
        comparisons=[
            dataclasses.replace(
                c, at_steps=_void(c.at_steps, void), at_time=_void(c.at_time, void)
            )
            for c in compare(pairs, rules, noise, tests)
        ],
        noise=noise,
        notes={arm.label: note for arm, note in alone if note},
        controls=controls,
        void=void,
        own_best=(
            _own_best(swept, pairs, rules, noise, void)
            if swept
            else untuned(matrix.runs)
        ),
        series=series,
    )


def _own_best(
    swept: Sequence[SweptArm],
    pairs: Sequence[NotedPair],
    rules: Rules,
    noise: Sequence[Noise],
    void: tuple[str, ...],
) -> OwnBest:
    def grade(found: Sequence[Pair]) -> list[Verdict]:
        return grade_all(found, at_equal_steps, rules, noise)

    best = own_best(swept, pairs, grade, rules.alpha_of_look)
    own = [
        dataclasses.replace(c, verdict=_void(c.verdict, void)) for c in best.comparisons
    ]
    return dataclasses.replace(best, comparisons=own)


def _void(verdict: Verdict, void: tuple[str, ...]) -> Verdict:
    """Make a verdict INVALID if there are reasons that void the whole matrix."""
    if not void:
        return verdict
    reasons = (*void, *verdict.reasons)
    return dataclasses.replace(verdict, grade=INVALID, reasons=reasons)


def compare(
    pairs: Sequence[NotedPair],
    rules: Rules,
    noise: Sequence[Noise] | None = None,
    series: Tests | None = None,
) -> list[Comparison]:
    """Grade (arm, partner, note) triples as one family, or by the tests of a series.

    noise: of a baseline; by default of the partners.
    """
    if noise is None:
        noise = noise_of([partner for _, partner, _ in pairs])
    paired = [(arm, partner) for arm, partner, _ in pairs]
    at_steps = grade_all(paired, at_equal_steps, rules, noise, series)
    at_time = grade_all(paired, at_equal_time, rules, noise, series)
    found = [
        Comparison(arm, partner, note, changes_between(partner, arm), steps, time)
        for (arm, partner, note), steps, time in zip(
            pairs, at_steps, at_time, strict=True
        )
    ]
    return [_at_the_end(c) if c.is_timed else c for c in found]


def _at_the_end(timed: Comparison) -> Comparison:
    # The pooled test decides for final losses, and the t test for interpolated ones.
    at_time = dataclasses.replace(timed.at_steps, seconds=timed.at_time.seconds)
    return dataclasses.replace(timed, at_time=at_time)


# ---- grades ---------------------------------------------------------------------


def grade_all(
    pairs: Sequence[Pair],
    measure: Callable[[Arm, Arm, Rules], Evidence],
    rules: Rules,
    noise: Sequence[Noise],
    series: Tests | None = None,
) -> list[Verdict]:
    """Verdicts of one family of comparisons, from evidence by ``measure``."""
    evidence = [measure(arm, partner, rules) for arm, partner in pairs]
    matched = [i for i, item in enumerate(evidence) if not item.unmatched]
    samples = [Differences.of(evidence[i]) for i in matched]
    pooled: dict[int, Pooled | None] = {}
    if series is None:
        chosen = [pairs[i] for i in matched], [evidence[i] for i in matched]
        family = family_of(chosen[0])
        together = pool(*chosen, rules)
        pooled = dict(zip(matched, together, strict=True))
        grades = grade_family(samples, rules, together)
    else:
        family = Family(series.next_number, series.next_level)
        is_own = measure is at_equal_steps
        grades = [
            grade_test(sample, rules, series.by_place.get(i), is_own)
            for i, sample in zip(matched, samples, strict=True)
        ]
    graded = dict(zip(matched, grades, strict=True))
    verdicts = []
    for index, (pair, item) in enumerate(zip(pairs, evidence, strict=True)):
        verdict = graded.get(index, Verdict())
        if verdict.mean is None:
            verdict = ungraded(Differences(item.differences, item.error), rules)
        verdict = dataclasses.replace(
            verdict,
            seeds=item.seeds,
            seconds=item.seconds,
            family=len(matched) if index in pooled else None,
        )
        design = _design(pair, item, pooled.get(index), rules, noise, family)
        verdicts.append(finished(verdict, item, design))
    return verdicts


def _design(
    pair: Pair,
    evidence: Evidence,
    found: Pooled | None,
    rules: Rules,
    noise: Sequence[Noise],
    family: Family,
) -> Design:
    own = [n.sample.sd for n in noise if n.arm.size == pair[0].size]
    is_pooled = found is not None and found.is_planned
    if family.level is not None:
        is_pooled = evidence.seconds is None
    return Design(
        PlannedTest(rules, family, is_pooled),
        runs_sd=max(own) if own else known_noise_of(pair),
        runs_origin="the noise floor" if own else "the known noise at 124M",
        pooled_sd=None if found is None else found.sd,
        pool="" if found is None else found.pool,
    )
