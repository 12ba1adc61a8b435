"""Columns of the report, shared by terminal, Markdown and HTML.

A line is an arm with its comparison. Numbers of an arm are means over its finished
seeds, or the largest where they are maxima themselves; unknown values are a dash.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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

Form = Callable[[Any], str]
# Columns that a phone should show without scrolling, in their order on the page, which
# shows the others on demand.
MAIN = """step title grade difference grade_time difference_time val_loss
seeds""".split()
COUNTS = """parameters flops_per_token tokens tokens_per_s zeros energy_j_per_mtoken
infer_tokens_per_s infer_batch_tokens_per_s""".split()
BYTES = """peak_memory_bytes kv_bytes_per_token optimizer_state_bytes
infer_cache_bytes_per_token""".split()
FORMS: dict[str, Form] = {
    **dict.fromkeys(COUNTS, human.count),
    **dict.fromkeys(BYTES, human.size),
    **dict.fromkeys(("val_accuracy", "mfu", "sparsity"), human.percent),
    **dict.fromkeys(("seconds", "mean_epoch_seconds"), human.duration),
    "step_seconds": human.milliseconds,
    "as_trained": lambda value: human.NONE if value is None else f"{value:.0e}",
}


def form_of(key: str) -> Form:
    """Form in which a number in the results of a run is shown."""
    return FORMS.get(key, fixed(DIGITS))


def fixed(digits: int) -> Form:
    return lambda value: human.fixed(value, digits)


@dataclass(frozen=True, slots=True)
class Column:
    """``value`` sorts, ``show`` is read."""

    key: str
    heading: str
    help: str
    value: Callable[[Line], Value]
    show: Callable[[Line], str]
    is_number: bool = True

    @property
    def is_main(self) -> bool:
        return self.key in MAIN

    @property
    def reading_order(self) -> int:
        return MAIN.index(self.key) if self.is_main else len(MAIN)


def _column(
    key: str,
    heading: str,
    help: str,
    form: Form | None = None,
    value: Callable[[Line], Value] | None = None,
    is_number: bool = True,
) -> Column:
    """Column of a value in a form; by default of the mean of the result ``key``."""
    get, show = value or (lambda line: line.arm.mean(key)), form or form_of(key)
    return Column(key, heading, help, get, lambda line: show(get(line)), is_number)


def _before_after(key: str, name: str, heading: str, help: str, form: Form) -> Column:
    """Column for a value before and after the removal of heads, the sort key."""
    return Column(
        key,
        heading,
        f"{help}, before and after pruned heads were removed",
        lambda line: line.arm.mean(name) if has_removed(line.arm) else None,
        lambda line: change_text(line.arm, name, form),
    )


def _partner(line: Line) -> str:
    return line.comparison.partner.label if line.comparison else human.NONE


def _what(line: Line) -> str:
    """Title of a step, or name of a cell, whose title is a longer explanation."""
    return line.title if line.arm.step is not None else line.arm.name


def _ratio(line: Line) -> float | None:
    return ratio_of(line.arm.runs[0]) if line.arm.runs else None


def _test_text(line: Line) -> str:
    verdict = line.at_steps
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
    ),
    _column("title", "what changed", "Description of the arm", str, _what, False),
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
    ),
    _column("val_loss", "val loss", "Validation loss, nats per token"),
    Column(
        "difference",
        "difference",
        "Loss minus the partner's, paired by seed, ± half its 95% interval; "
        "negative is better",
        lambda line: line.at_steps.mean,
        lambda line: difference_text(line.at_steps),
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
        _test_text,
    ),
    _column("val_perplexity", "ppl", "Validation perplexity", fixed(2)),
    _column("val_accuracy", "accuracy", "Next-token accuracy"),
    _column("bits_per_byte", "bits/byte", "Loss in bits per byte of text"),
    _column("parameters", "params", "Trained parameters"),
    _column(
        "parameter_change",
        "vs partner",
        "Parameters relative to the partner's",
        human.change,
        parameter_change,
    ),
    _column("ratio", "r", "MLP weights over attention weights", fixed(2), _ratio),
    _column("flops_per_token", "FLOPs/token", "Of training, as in make budget"),
    _column("tokens_per_s", "tokens/s", "Training throughput"),
    _column("mfu", "MFU", "Share of the device's dense peak"),
    _column(
        "energy_j_per_mtoken",
        "J/Mtoken",
        "Energy of the GPU, joules per million tokens",
    ),
    _column(
        "peak_memory_bytes",
        "peak memory",
        "Peak memory of the device",
        value=lambda line: line.arm.largest("peak_memory_bytes"),
    ),
    _column("kv_bytes_per_token", "KV/token", "Decode cache, bytes per token"),
    _column(
        "infer_tokens_per_s",
        "new tok/s",
        "Generated tokens per second of one sequence, by make inference-bench",
    ),
    _column(
        "infer_batch_tokens_per_s",
        "new tok/s, batch",
        "The same at the largest batch that was measured",
    ),
    _column("infer_p50_ms", "ms/token", "Median time of a generated token", fixed(2)),
    _column("infer_p95_ms", "ms/token, p95", "Its 95th percentile", fixed(2)),
    _column(
        "infer_cache_bytes_per_token",
        "cache/token",
        "Decode cache as measured, bytes per token",
    ),
    _column("seconds", "time", "Training time"),
    _column("sparsity", "zeros", "Share of exact zeros in the linear weights"),
    _column("zeros", "zero weights", "Number of exact zeros"),
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
    _column("step_seconds", "update", "Time of one optimizer update"),
    _column(
        "as_trained",
        "as trained",
        "Largest relative deviation of a gradient from the formulas, as trained",
        value=lambda line: line.arm.largest("as_trained"),
    ),
    _column("optimizer_state_bytes", "optimizer", "Bytes of optimizer state"),
    _column(
        "grade",
        "verdict",
        "Verdict on the final losses",
        grade_text,
        lambda line: line.at_steps.grade,
        is_number=False,
    ),
    Column(
        "difference_time",
        "difference, equal time",
        "Difference of the losses when the first run of both arms ended",
        lambda line: line.at_time.mean,
        lambda line: difference_text(line.at_time),
    ),
    _column(
        "grade_time",
        "verdict, equal time",
        "Verdict at equal training time",
        grade_text,
        lambda line: line.at_time.grade,
        is_number=False,
    ),
)
COLUMN = {column.key: column for column in COLUMNS}
# Shown if an arm has a value.
OPTIONAL = """test bits_per_byte mfu flops_per_token kv_bytes_per_token sparsity zeros
step_seconds optimizer_state_bytes heads_left kv_change decode_change forward_change
energy_j_per_mtoken infer_tokens_per_s infer_batch_tokens_per_s infer_p50_ms
infer_p95_ms infer_cache_bytes_per_token""".split()
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
