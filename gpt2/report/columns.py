"""Columns of the report, shared by terminal, Markdown and HTML.

A line is an arm with its comparison. Numbers of an arm are means over its finished
seeds; unknown values are a dash.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpt2.plan.budget import budget
from gpt2.report.arms import Arm
from gpt2.report.controls import EQUAL, PENDING, Control
from gpt2.report.pruned_heads import change_text, has_removed, heads_text, short_time
from gpt2.report.read_results import Run
from gpt2.report.verdicts import Comparison, Judgement, Verdict
from gpt2.settings.parse import settings_from_dict
from lib import human

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
    """An arm with its comparison, or None for a baseline or if its partner is
    missing."""

    arm: Arm
    comparison: Comparison | None
    alone: str = BASELINE  # shown instead of a grade without a partner

    @property
    def grade(self) -> str:
        return self.comparison.at_steps.grade if self.comparison else self.alone

    @property
    def grade_at_time(self) -> str:
        return self.comparison.at_time.grade if self.comparison else self.alone


@dataclass(frozen=True, slots=True)
class Column:
    """``value`` sorts, ``show`` is read; the HTML page shows others on demand."""

    key: str
    heading: str
    help: str
    value: Callable[[Line], Value]
    show: Callable[[Line], str]
    is_number: bool = True
    is_main: bool = False


def lines_of(judged: Judgement) -> list[Line]:
    """Lines: the A/A control first, then one per arm, in the order of the matrix."""
    return [
        *map(_control_line, judged.controls),
        *(
            Line(arm, judged.of(arm), _alone(arm, judged))
            for arm in judged.arms
            if not arm.is_control
        ),
    ]


def _alone(arm: Arm, judged: Judgement) -> str:
    return NO_PARTNER if arm.label in judged.notes else BASELINE


def _control_line(control: Control) -> Line:
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
    return Line(control.arm, Comparison(*arms, "", [], verdict, at_time))


# ---- cells ----------------------------------------------------------------------


def seeds_text(line: Line) -> str:
    """Finished of planned runs, or one number if all are finished."""
    done, planned = len(line.arm.done), len(line.arm.runs)
    return str(done) if done == planned else f"{done}/{planned}"


def difference_text(verdict: Verdict | None) -> str:
    """Mean and half width of its interval, for example "−0.0182 ± 0.0041"."""
    if verdict is None or verdict.mean is None:
        return human.NONE
    mean = human.fixed(verdict.mean, DIGITS, sign=True)
    if verdict.interval is None:
        return f"{mean} (1 seed)"
    half = (verdict.interval.high - verdict.interval.low) / 2
    return f"{mean} ± {human.fixed(half, DIGITS)}"


def interval_text(verdict: Verdict | None) -> str:
    """ "[−0.0223, −0.0141]" """
    if verdict is None or verdict.interval is None:
        return human.NONE
    low, high = verdict.interval.low, verdict.interval.high
    ends = human.fixed(low, DIGITS, True), human.fixed(high, DIGITS, True)
    return f"[{ends[0]}, {ends[1]}]"


def p_text(p: float | None) -> str:
    """p with three decimals, or "<0.001"."""
    if p is None:
        return human.NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def grade_text(grade: str) -> str:
    return f"{MARKS[grade]} {grade}"


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


def _steps(line: Line) -> Verdict | None:
    return line.comparison.at_steps if line.comparison else None


def _time(line: Line) -> Verdict | None:
    return line.comparison.at_time if line.comparison else None


def _partner(line: Line) -> str:
    return line.comparison.partner.label if line.comparison else human.NONE


def _mean(name: str) -> Callable[[Line], Value]:
    return lambda line: line.arm.mean(name)


def _measure(
    key: str,
    heading: str,
    help: str,
    form: Callable[[float | None], str],
    main: bool = False,
) -> Column:
    """Column for the mean of a result."""
    return Column(
        key,
        heading,
        help,
        _mean(key),
        lambda line: form(line.arm.mean(key)),
        is_main=main,
    )


def _fixed(digits: int) -> Callable[[float | None], str]:
    return lambda value: human.fixed(value, digits)


def _what(line: Line) -> str:
    """Title of a step, or name of a cell, whose title is a longer explanation."""
    return line.arm.title if line.arm.step is not None else line.arm.name


def _before_after(
    key: str, name: str, heading: str, help: str, form: Callable[[float | None], str]
) -> Column:
    """Column for a value before and after the removal of heads; sorted by the
    latter."""
    return Column(
        key,
        heading,
        f"{help}, before and after pruned heads were removed",
        lambda line: line.arm.mean(name) if has_removed(line.arm) else None,
        lambda line: change_text(line.arm, name, form),
    )


def _change_text(line: Line) -> str:
    change = parameter_change(line)
    return human.NONE if change is None else f"{human.fixed(100 * change, 1, True)}%"


def _ratio(line: Line) -> float | None:
    return ratio_of(line.arm.runs[0]) if line.arm.runs else None


COLUMNS: tuple[Column, ...] = (
    Column(
        "step",
        "step",
        "Number of the step",
        lambda line: line.arm.step,
        lambda line: human.NONE if line.arm.step is None else str(line.arm.step),
        is_main=True,
    ),
    Column(
        "title",
        "what changed",
        "Description of the arm",
        _what,
        _what,
        is_number=False,
        is_main=True,
    ),
    Column(
        "partner",
        "compared with",
        "The arm that differs from it only in what is tested",
        _partner,
        _partner,
        is_number=False,
    ),
    Column(
        "seeds",
        "seeds",
        "Finished (of planned) runs",
        lambda line: len(line.arm.done),
        seeds_text,
        is_main=True,
    ),
    _measure(
        "val_loss", "val loss", "Validation loss, nats per token", _fixed(DIGITS), True
    ),
    Column(
        "difference",
        "difference",
        "Loss minus the partner's, paired by seed, ± half its 95% interval; "
        "negative is better",
        lambda line: v.mean if (v := _steps(line)) else None,
        lambda line: difference_text(_steps(line)),
        is_main=True,
    ),
    Column(
        "interval",
        "95% interval",
        "Student's t on the paired differences, for this arm alone",
        lambda line: v.interval.low if (v := _steps(line)) and v.interval else None,
        lambda line: interval_text(_steps(line)),
    ),
    Column(
        "p_deciding",
        "p",
        "p of no difference, corrected over all arms, by the test that decides",
        lambda line: v.p_deciding if (v := _steps(line)) else None,
        lambda line: p_text(v.p_deciding if (v := _steps(line)) else None),
    ),
    _measure("val_perplexity", "ppl", "Validation perplexity", _fixed(2)),
    _measure("val_accuracy", "accuracy", "Next-token accuracy", human.percent),
    _measure("bits_per_byte", "bits/byte", "Loss in bits per byte of text", _fixed(4)),
    _measure("parameters", "params", "Trained parameters", human.count),
    Column(
        "parameter_change",
        "vs partner",
        "Parameters relative to the partner's",
        parameter_change,
        _change_text,
    ),
    Column(
        "ratio",
        "r",
        "MLP weights over attention weights",
        _ratio,
        lambda line: human.fixed(_ratio(line), 2),
    ),
    _measure("flops_per_token", "FLOPs/token", "Analytic, per token", human.count),
    _measure("tokens_per_s", "tokens/s", "Training throughput", human.count),
    _measure("mfu", "MFU", "Share of the device's dense peak", human.percent),
    _measure(
        "energy_j_per_mtoken",
        "J/Mtoken",
        "Energy of the GPU, joules per million tokens",
        human.count,
    ),
    _measure(
        "peak_memory_bytes", "peak memory", "Peak memory of the device", human.size
    ),
    _measure(
        "kv_bytes_per_token", "KV/token", "Decode cache, bytes per token", human.size
    ),
    _measure("seconds", "time", "Training time, h:mm:ss", human.duration),
    _measure(
        "sparsity", "zeros", "Share of exact zeros in the linear weights", human.percent
    ),
    _measure("zeros", "zero weights", "Number of exact zeros", human.count),
    Column(
        "heads_left",
        "heads",
        "Attention heads of the exported model and of the trained one",
        lambda line: line.arm.mean("heads_left"),
        lambda line: heads_text(line.arm),
    ),
    _before_after(
        *("kv_change", "kv_bytes_per_token", "KV/token, removed"),
        *("Decode cache, bytes per token", human.size),
    ),
    _before_after(
        *("decode_change", "decode_seconds", "decoding, removed"),
        *("Measured time per token", short_time),
    ),
    _before_after(
        *("forward_change", "forward_seconds", "forward, removed"),
        *("Measured time of a forward pass", short_time),
    ),
    _measure(
        "step_seconds", "update", "Time of one optimizer update", human.milliseconds
    ),
    _measure(
        "as_trained",
        "as trained",
        "Largest relative deviation of a gradient from the formulas, as trained",
        lambda value: "-" if value is None else f"{value:.0e}",
    ),
    _measure(
        "optimizer_state_bytes", "optimizer", "Bytes of optimizer state", human.size
    ),
    Column(
        "grade",
        "verdict",
        "Verdict after equal numbers of updates",
        lambda line: line.grade,
        lambda line: grade_text(line.grade),
        is_number=False,
        is_main=True,
    ),
    Column(
        "difference_time",
        "difference, equal time",
        "Difference of the losses when the first run of both arms ended",
        lambda line: v.mean if (v := _time(line)) else None,
        lambda line: difference_text(_time(line)),
        is_main=True,
    ),
    Column(
        "grade_time",
        "verdict, equal time",
        "Verdict at equal training time",
        lambda line: line.grade_at_time,
        lambda line: grade_text(line.grade_at_time),
        is_number=False,
        is_main=True,
    ),
)
COLUMN = {column.key: column for column in COLUMNS}
BY_DEFAULT_ABSENT = (
    *("bits_per_byte", "mfu", "flops_per_token", "kv_bytes_per_token"),
    *("sparsity", "zeros", "step_seconds", "optimizer_state_bytes"),
    *("heads_left", "kv_change", "decode_change", "forward_change"),
    "energy_j_per_mtoken",
)
OF_CELLS = (
    "step_seconds",
    "optimizer_state_bytes",
)  # do not differ between steps of an ablation


def shown_columns(lines: list[Line]) -> list[Column]:
    """Columns to show: without optional ones that no arm has, and without those that do
    not differ between steps of an ablation."""
    cells = any(line.arm.step is None for line in lines)
    return [
        column
        for column in COLUMNS
        if (cells or column.key not in OF_CELLS)
        and (
            column.key not in BY_DEFAULT_ABSENT
            or any(column.value(line) is not None for line in lines)
        )
    ]


def has_zeros(lines: list[Line]) -> bool:
    """True if single weights of some arm were pruned (they remain as zeros)."""
    return any(
        line.arm.mean("sparsity") is not None and not has_removed(line.arm)
        for line in lines
    )


def has_removed_heads(lines: list[Line]) -> bool:
    """True if heads of some arm were removed."""
    return any(has_removed(line.arm) for line in lines)
