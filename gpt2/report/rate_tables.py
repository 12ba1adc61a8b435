"""Tables and sentences of LR_SWEEP: loss against rate, each arm at its own best."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import fmean

from gpt2.plan.lr_sweep import RATE
from gpt2.report.arms import Arm
from gpt2.report.grades import family_size
from gpt2.report.lines import (
    DIGITS,
    difference_text,
    grade_text,
    interval_text,
    p_text,
)
from gpt2.report.notes import comparison_remarks
from gpt2.report.own_best import SweptArm
from gpt2.report.sweep_tables import BEST, LOSS, against, series_of
from gpt2.report.verdicts import Judgement
from gpt2.settings.shown import text_of
from lib import human
from lib.plots import Against

DIVERGED = "diverged"

OWN_BEST = """\
\\* is the best rate of an arm: the lowest mean validation loss over the tuning seeds,
which no verdict uses. "Each arm at its own best rate" is one family, corrected for the
number of its comparisons at equal budgets, {number}; the comparisons at equal rates
above are another family. Decide beforehand which of the two is the question. p at the
own best is the largest over the rates that may be the better one's rival: an arm is
SUPPORTED only if, at its best rate, it is better than its partner at every rate of the
grid, and HARMFUL only if its partner at its best is better than it at every rate.
NEUTRAL is about the two chosen rates."""

RATE_TITLE = "Mean and range over all seeds; larger mark: best by the tuning seeds"

Table = tuple[list[str], list[list[str]]]  # heads, rows


def rate_table(judged: Judgement) -> Table:
    """Mean loss by rate of each arm, on the tuning seeds and on the others."""
    arms = judged.own_best.arms
    rates = sorted({rate for arm in arms for rate in (*arm.losses, *arm.arms)})
    heads = ["arm", "seeds", *map(text_of, rates)]
    rows = []
    for arm in arms:
        if arm.seeds:
            tuning = [_tuning_cell(arm, rate) for rate in rates]
            rows.append([arm.name, f"{listed(arm.seeds)} (tuning)", *tuning])
        seeds = sorted({seed for cell in arm.arms.values() for seed in cell.seeds})
        others = [_cell(arm, rate) for rate in rates]
        rows.append([arm.name, listed(seeds), *others])
    return heads, rows


def rate_chart(judged: Judgement) -> Against | None:
    """Loss against learning rate, mean and range over all seeds; None without any."""
    series = []
    for place, arm in enumerate(judged.own_best.arms):
        losses = {rate: arm.all_losses(rate) for rate in sorted(arm.losses)}
        points = [(r, fmean(x), min(x), max(x)) for r, x in losses.items() if x]
        one = series_of(arm.name, place, points)
        series.append(dataclasses.replace(one, best=arm.choice.best))
    return against("peak learning rate", LOSS, series)


def own_best_text(judged: Judgement) -> str:
    """Text on how rates are chosen and compared."""
    number = family_size(c.verdict for c in judged.own_best.comparisons)
    return OWN_BEST.format(number=number)


def listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _tuning_cell(arm: SweptArm, rate: float) -> str:
    choice = arm.choice
    mean = choice.means.get(rate)
    if mean is not None and math.isinf(mean):
        return DIVERGED
    return human.fixed(mean, DIGITS) + BEST * (choice.best == rate)


def _cell(arm: SweptArm, rate: float) -> str:
    cell = arm.arms.get(rate)
    if cell is None or len(cell.done) < len(cell.runs):
        return human.NONE
    return human.fixed(cell.mean("val_loss"), DIGITS)


def best_table(judged: Judgement) -> Table:
    """Each arm at its own best rate against its partner at its own."""
    heads = ["arm", "compared with", "difference", "95%", "p", "verdict"]
    rows = [
        [
            *(c.arm.label, c.partner.label, difference_text(c.verdict)),
            *(interval_text(c.verdict.interval), p_text(c.verdict.p_deciding)),
            grade_text(c.verdict.grade),
        ]
        for c in judged.own_best.comparisons
    ]
    return heads, rows


def rate_remarks(judged: Judgement) -> list[tuple[str, str]]:
    """Remarks as (arm, sentence): on best rates, and reasons of verdicts."""
    found = [
        (arm.name, text)
        for arm in judged.own_best.arms
        for text in (_remark(arm), _doubt(arm))
        if text
    ]
    for c in judged.own_best.comparisons:
        found += comparison_remarks(c, c.verdict, judged.void)
    return list(dict.fromkeys(found))


def _remark(arm: SweptArm) -> str:
    choice = arm.choice
    if arm.untuned:
        rates = ", ".join(map(text_of, arm.untuned))
        return f"no tuning run at {rates}, so no comparison at its own best rate"
    if choice.best is None:
        return "" if arm.missing else "diverged at every rate on the tuning seeds"
    if not choice.edge:
        return ""
    return (
        f"its best rate, {text_of(choice.best)}, is the {choice.edge} of LR_SWEEP: a "
        "better one may lie beyond it (LR_SWEEP_EXTEND=y goes on)"
    )


def _doubt(arm: SweptArm) -> str:
    """Remark if the seeds of the verdicts have their lowest mean at another rate."""
    chosen = arm.at_best
    if chosen is None or not (losses := chosen.by_seed("val_loss")):
        return ""
    # Only means of the same seeds: with fewer, the bad ones may be those that diverged.
    means = {
        rate: fmean(found.values())
        for rate, cell in arm.arms.items()
        if (found := cell.by_seed("val_loss")).keys() == losses.keys()
    }
    lowest = min(means, key=lambda rate: means[rate])
    gain = fmean(losses.values()) - means[lowest]
    if round(gain, DIGITS) <= 0:
        return ""
    return (
        f"the tuning seeds choose {_rate(chosen)}, but seeds {listed(chosen.seeds)} "
        f"are better at {text_of(lowest)}, by {gain:.{DIGITS}f}: the choice is "
        "uncertain (more LR_TUNING_SEEDS make it surer)"
    )


def rate_lines(judged: Judgement) -> list[str]:
    """The own best in sentences, for the terminal."""
    found = judged.own_best
    if not found:
        return []
    if found.pending:
        return [f"Learning rates: {found.pending}."]
    rates = ", ".join(
        f"{arm.name} {text_of(arm.choice.best)}"
        for arm in found.arms
        if arm.choice.best is not None
    )
    lines = [f"Best learning rates, by tuning seeds: {rates or 'none'}."]
    for c in found.comparisons:
        at = [f"{x.label.partition('/')[0]} at {_rate(x)}" for x in (c.arm, c.partner)]
        lines.append(
            f"Each at its own best: {at[0]} against {at[1]}: "
            f"{difference_text(c.verdict)}, {grade_text(c.verdict.grade)}"
        )
    return lines + [f"  {arm}: {text}" for arm, text in rate_remarks(judged)]


def _rate(arm: Arm) -> str:
    rate = arm.coordinates.get(RATE)
    return "its only rate" if rate is None else text_of(rate)
