"""Lines of the report: an arm with its comparison, and the words for its numbers."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2.plan.axes import Point, titled
from gpt2.plan.budget import budget
from gpt2.report.arms import Arm, Change
from gpt2.report.controls import EQUAL, PENDING, Control
from gpt2.report.grades import Verdict
from gpt2.report.pruned_heads import has_removed
from gpt2.report.results import Run
from gpt2.report.verdicts import Comparison, Judgement
from gpt2.settings.parse import settings_from_dict
from gpt2.settings.shown import shown_name, text_of
from lib import human
from lib.safe_json import clean
from lib.stats import Interval

Value = float | str | None
BASELINE, NO_PARTNER = "baseline", "no partner"
DIGITS = 4  # of losses and their differences, nats
MARKS = {  # before a grade, for readers who cannot rely on colour
    "SUPPORTED": "▲",
    "NEUTRAL": "=",
    "HARMFUL": "▼",
    "INCONCLUSIVE": "?",
    "UNMATCHED": "≠",
    "UNVERIFIED": "!",
    "INVALID": "✕",
    EQUAL: "≈",
    PENDING: "…",
    BASELINE: "·",
    NO_PARTNER: "·",
}


@dataclass(frozen=True, slots=True)
class Line:
    """An arm with its comparison; None: a baseline, or its partner is missing.
    title: of the arm, without coordinates that all arms share."""

    arm: Arm
    title: str
    comparison: Comparison | None
    alone: str = BASELINE  # shown instead of a grade without a partner

    @property
    def at_steps(self) -> Verdict:
        """After equal numbers of updates; without a partner there is no difference."""
        c = self.comparison
        return c.at_steps if c else Verdict(grade=self.alone)

    @property
    def at_time(self) -> Verdict:
        """At equal training time."""
        return self.comparison.at_time if self.comparison else Verdict(grade=self.alone)


def lines_of(judged: Judgement) -> list[Line]:
    """Lines: the A/A control first, then one per arm, in the order of the matrix."""
    shared = shared_coordinates(judged)
    lines = [_control_line(control, shared) for control in judged.controls]
    for arm in judged.arms:
        if not arm.is_control:
            alone = NO_PARTNER if arm.label in judged.notes else BASELINE
            lines.append(Line(arm, _title(arm, shared), judged.of(arm), alone))
    return lines


def shared_coordinates(judged: Judgement) -> Point:
    """Coordinates of a sweep that are the same for all of several arms."""
    first, *others = [arm.coordinates for arm in judged.arms] or [{}]
    return {
        name: value
        for name, value in first.items()
        if others and all(other.get(name) == value for other in others)
    }


def _title(arm: Arm, shared: Point) -> str:
    rest = {n: value for n, value in arm.coordinates.items() if n not in shared}
    whole = titled("", arm.coordinates)
    if not shared or not arm.title.endswith(whole):
        return arm.title
    return titled(arm.title.removesuffix(whole), rest)


def _control_line(control: Control, shared: Point) -> Line:
    verdict = Verdict(
        grade=control.grade,
        reasons=control.reasons,
        seeds=control.seeds,
        differences=control.differences,
        mean=control.mean,
        interval=control.interval,
    )
    at_time = Verdict(grade=control.grade)  # other kernels have other speeds
    arms = control.arm, control.baseline
    comparison = Comparison(*arms, "", [], verdict, at_time)
    return Line(control.arm, _title(control.arm, shared), comparison)


def seeds_text(line: Line) -> str:
    """Finished of planned runs, or one number if all are finished."""
    done, planned = len(line.arm.done), len(line.arm.runs)
    return str(done) if done == planned else f"{done}/{planned}"


def difference_text(verdict: Verdict) -> str:
    """Mean and half width of its interval, for example "−0.0182 ± 0.0041"."""
    if verdict.mean is None:
        return human.NONE
    mean = human.fixed(verdict.mean, DIGITS, sign=True)
    if verdict.interval is None:
        return f"{mean} (1 seed)"
    return f"{mean} ± {human.fixed(verdict.interval.half, DIGITS)}"


def interval_text(interval: Interval | None) -> str:
    """ "[−0.0223, −0.0141]" """
    if interval is None:
        return human.NONE
    low, high = (human.fixed(x, DIGITS, True) for x in interval)
    return f"[{low}, {high}]"


def p_text(p: float | None) -> str:
    """p with three decimals, or "<0.001"."""
    if p is None:
        return human.NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def grade_text(grade: str) -> str:
    return f"{MARKS[grade]} {grade}"


def shown(value: object) -> str:
    """Value of a setting as text; a dash if absent."""
    return human.NONE if value is None else clean(text_of(value))


def shown_change(change: Change) -> tuple[str, str, str]:
    """Name of a setting that differs, and both values, as text."""
    name, old, new = change
    return clean(shown_name(name)), shown(old), shown(new)


def ratio_of(run: Run) -> float | None:
    """Ratio r of MLP to attention weights, from the settings; None if unknown."""
    try:
        return budget(settings_from_dict(run.settings)).ratio
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError):
        return None  # results of another version or another project


def parameter_change(line: Line) -> float | None:
    """Parameters relative to the partner: 0.11 for 11% more."""
    if line.comparison is None:
        return None
    mine = line.arm.mean("parameters")
    theirs = line.comparison.partner.mean("parameters")
    return mine / theirs - 1 if mine is not None and theirs else None


def has_zeros(lines: list[Line]) -> bool:
    """True if single weights of some arm were pruned (they remain as zeros)."""
    return any(
        line.arm.mean("sparsity") is not None and not has_removed(line.arm)
        for line in lines
    )


def has_removed_heads(lines: list[Line]) -> bool:
    """True if heads of some arm were removed."""
    return any(has_removed(line.arm) for line in lines)
