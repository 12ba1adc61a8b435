"""Columns of the report, shared by terminal, Markdown and HTML.

A line is an arm with its comparison. Numbers of an arm are means over its finished
seeds, or the largest where they are maxima themselves; unknown values are a dash.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpt2.report.grades import Verdict
from gpt2.report.lines import (
    DIGITS,
    Line,
    Value,
    difference_text,
    grade_text,
    interval_text,
    p_text,
    parameter_change,
    ratio_of,
    seeds_text,
)
from gpt2.report.pruned_heads import change_text, has_removed, heads_text, short_time
from gpt2.report.verdicts import only_timed
from lib import human


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


def _partner(line: Line) -> str:
    return line.comparison.partner.label if line.comparison else human.NONE


def _column(
    key: str,
    heading: str,
    help: str,
    form: Callable[[Any], str],
    value: Callable[[Line], Value] | None = None,
    **flags: bool,
) -> Column:
    """Column of a value in a form; by default of the mean of the result ``key``."""
    get = value or (lambda line: line.arm.mean(key))
    return Column(key, heading, help, get, lambda line: form(get(line)), **flags)


def _fixed(digits: int) -> Callable[[float | None], str]:
    return lambda value: human.fixed(value, digits)


def _what(line: Line) -> str:
    """Title of a step, or name of a cell, whose title is a longer explanation."""
    return line.title if line.arm.step is not None else line.arm.name


def _before_after(
    key: str, name: str, heading: str, help: str, form: Callable[[float | None], str]
) -> Column:
    """Column for a value before and after the removal of heads, the sort key."""
    return Column(
        key,
        heading,
        f"{help}, before and after pruned heads were removed",
        lambda line: line.arm.mean(name) if has_removed(line.arm) else None,
        lambda line: change_text(line.arm, name, form),
    )


def _percent(change: float | None) -> str:
    return human.NONE if change is None else f"{human.fixed(100 * change, 1, True)}%"


def _ratio(line: Line) -> float | None:
    return ratio_of(line.arm.runs[0]) if line.arm.runs else None


def _test_text(verdict: Verdict) -> str:
    if verdict.test is None or verdict.level is None:
        return human.NONE
    return f"{verdict.test} at {human.level(verdict.level)}"


COLUMNS: tuple[Column, ...] = (
    _column(
        "step",
        "step",
        "Number of the step",
        lambda step: human.NONE if step is None else str(step),
        lambda line: line.arm.step,
        is_main=True,
    ),
    _column(
        "title",
        "what changed",
        "Description of the arm",
        str,
        _what,
        is_number=False,
        is_main=True,
    ),
    _column(
        "partner",
        "compared with",
        "The arm that differs from it only in what is tested",
        str,
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
    _column(
        "val_loss",
        "val loss",
        "Validation loss, nats per token",
        _fixed(DIGITS),
        is_main=True,
    ),
    Column(
        "difference",
        "difference",
        "Loss minus the partner's, paired by seed, ± half its 95% interval; "
        "negative is better",
        lambda line: line.at_steps.mean,
        lambda line: difference_text(line.at_steps),
        is_main=True,
    ),
    Column(
        "interval",
        "95% interval",
        "Student's t on the paired differences, for this arm alone",
        lambda line: x.low if (x := line.at_steps.interval) else None,
        lambda line: interval_text(line.at_steps.interval),
    ),
    _column(
        "p_deciding",
        "p",
        "p of no difference, corrected over all arms, by the test that decides",
        p_text,
        lambda line: line.at_steps.p_deciding,
    ),
    Column(
        "test",
        "test",
        "Number of its test in the sequential family, and the level",
        lambda line: line.at_steps.test,
        lambda line: _test_text(line.at_steps),
    ),
    _column("val_perplexity", "ppl", "Validation perplexity", _fixed(2)),
    _column("val_accuracy", "accuracy", "Next-token accuracy", human.percent),
    _column("bits_per_byte", "bits/byte", "Loss in bits per byte of text", _fixed(4)),
    _column("parameters", "params", "Trained parameters", human.count),
    _column(
        "parameter_change",
        "vs partner",
        "Parameters relative to the partner's",
        _percent,
        parameter_change,
    ),
    _column("ratio", "r", "MLP weights over attention weights", _fixed(2), _ratio),
    _column(
        "flops_per_token", "FLOPs/token", "Of training, as in make budget", human.count
    ),
    _column("tokens_per_s", "tokens/s", "Training throughput", human.count),
    _column("mfu", "MFU", "Share of the device's dense peak", human.percent),
    _column(
        "energy_j_per_mtoken",
        "J/Mtoken",
        "Energy of the GPU, joules per million tokens",
        human.count,
    ),
    _column(
        "peak_memory_bytes",
        "peak memory",
        "Peak memory of the device",
        human.size,
        lambda line: line.arm.largest("peak_memory_bytes"),
    ),
    _column(
        "kv_bytes_per_token", "KV/token", "Decode cache, bytes per token", human.size
    ),
    _column(
        "infer_tokens_per_s",
        "new tok/s",
        "Generated tokens per second of one sequence, by make inference-bench",
        human.count,
    ),
    _column(
        "infer_batch_tokens_per_s",
        "new tok/s, batch",
        "The same at the largest batch that was measured",
        human.count,
    ),
    _column("infer_p50_ms", "ms/token", "Median time of a generated token", _fixed(2)),
    _column("infer_p95_ms", "ms/token, p95", "Its 95th percentile", _fixed(2)),
    _column(
        "infer_cache_bytes_per_token",
        "cache/token",
        "Decode cache as measured, bytes per token",
        human.size,
    ),
    _column("seconds", "time", "Training time", human.duration),
    _column(
        "sparsity", "zeros", "Share of exact zeros in the linear weights", human.percent
    ),
    _column("zeros", "zero weights", "Number of exact zeros", human.count),
    Column(
        "heads_left",
        "heads",
        "Attention heads of the exported model and of the trained one",
        lambda line: line.arm.mean("heads_left"),
        lambda line: heads_text(line.arm),
    ),
    _before_after(
        "kv_change",
        "kv_bytes_per_token",
        "KV/token, removed",
        "Decode cache, bytes per token",
        human.size,
    ),
    _before_after(
        "decode_change",
        "decode_seconds",
        "decoding, removed",
        "Measured time per token",
        short_time,
    ),
    _before_after(
        "forward_change",
        "forward_seconds",
        "forward, removed",
        "Measured time of a forward pass",
        short_time,
    ),
    _column(
        "step_seconds", "update", "Time of one optimizer update", human.milliseconds
    ),
    _column(
        "as_trained",
        "as trained",
        "Largest relative deviation of a gradient from the formulas, as trained",
        lambda value: "-" if value is None else f"{value:.0e}",
        lambda line: line.arm.largest("as_trained"),
    ),
    _column(
        "optimizer_state_bytes", "optimizer", "Bytes of optimizer state", human.size
    ),
    _column(
        "grade",
        "verdict",
        "Verdict on the final losses",
        grade_text,
        lambda line: line.at_steps.grade,
        is_number=False,
        is_main=True,
    ),
    Column(
        "difference_time",
        "difference, equal time",
        "Difference of the losses when the first run of both arms ended",
        lambda line: line.at_time.mean,
        lambda line: difference_text(line.at_time),
        is_main=True,
    ),
    _column(
        "grade_time",
        "verdict, equal time",
        "Verdict at equal training time",
        grade_text,
        lambda line: line.at_time.grade,
        is_number=False,
        is_main=True,
    ),
)
COLUMN = {column.key: column for column in COLUMNS}
OPTIONAL = (  # shown if an arm has a value
    "test",
    "bits_per_byte",
    "mfu",
    "flops_per_token",
    "kv_bytes_per_token",
    "sparsity",
    "zeros",
    "step_seconds",
    "optimizer_state_bytes",
    "heads_left",
    "kv_change",
    "decode_change",
    "forward_change",
    "energy_j_per_mtoken",
    "infer_tokens_per_s",
    "infer_batch_tokens_per_s",
    "infer_p50_ms",
    "infer_p95_ms",
    "infer_cache_bytes_per_token",
)
# Do not differ between steps of an ablation.
OF_CELLS = ("step_seconds", "optimizer_state_bytes")
# Repeat the final losses where all runs have a time budget.
AT_TIME = ("difference_time", "grade_time")


def shown_columns(lines: list[Line]) -> list[Column]:
    """Columns to show: without optional ones that no arm has, and without those that do
    not differ between steps of an ablation or that repeat another column."""
    absent: set[str] = set()
    if all(line.arm.step is not None for line in lines):
        absent |= {*OF_CELLS}
    if only_timed(line.comparison for line in lines if line.comparison):
        absent |= {*AT_TIME}

    def is_shown(column: Column) -> bool:
        is_known = any(column.value(line) is not None for line in lines)
        return column.key not in absent and (is_known or column.key not in OPTIONAL)

    return list(filter(is_shown, COLUMNS))
