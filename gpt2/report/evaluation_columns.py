"""Columns of the report for the measures of `make eval`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from gpt2.report.arms import Arm
from gpt2.report.columns import Column
from gpt2.report.evaluations import PREFIX, Measure
from gpt2.report.lines import DIGITS, Line
from lib import human
from lib.items_by_seeds import CrossedMean, crossed_mean


def evaluation_columns(lines: list[Line]) -> list[Column]:
    """Two columns for each measure that some arm has: its mean over items and seeds,
    and the difference from the arm that the line is compared with."""
    runs = [run for line in lines for run in line.arm.done]
    names = dict.fromkeys(name for run in runs for name in run.evaluation)
    return [column for name in names for column in _pair(name)]


def _pair(name: str) -> Iterator[Column]:
    key = f"{PREFIX}{name}"
    yield Column(
        key,
        name,
        "Mean over items and seeds, by make eval",
        lambda line: line.arm.mean(key),
        lambda line: human.fixed(line.arm.mean(key), DIGITS),
    )
    found = partial(_difference, name)
    yield Column(
        f"{key}, difference",
        f"{name}, difference",
        "Minus the partner's, over the same items and seeds, ± half its 95% interval, "
        "which is not corrected for the number of arms and measures",
        lambda line: d.mean if (d := found(line)) else None,
        lambda line: _text(found(line)),
    )


def _difference(name: str, line: Line) -> CrossedMean | None:
    """None without a partner that has the same items for a seed."""
    if line.comparison is None:
        return None
    arms = line.arm, line.comparison.partner
    return paired_difference(*(_by_seed(arm, name) for arm in arms))


def paired_difference(
    mine: Mapping[int, Measure], theirs: Mapping[int, Measure]
) -> CrossedMean | None:
    """Mean difference over the seeds that both have with the same items, of one
    measure by seed; None if there is none. Of seeds with different items, those count
    that most of them have."""
    tables: dict[tuple[str, int], list[list[float]]] = {}
    for seed in mine.keys() & theirs.keys():
        a, b = mine[seed], theirs[seed]
        if a.of == b.of and len(a.items) == len(b.items):
            differences = [x - y for x, y in zip(a.items, b.items, strict=True)]
            tables.setdefault((a.of, len(a.items)), []).append(differences)
    return crossed_mean(max(tables.values(), key=len)) if tables else None


def _by_seed(arm: Arm, name: str) -> dict[int, Measure]:
    return {
        run.seed: run.evaluation[name] for run in arm.done if name in run.evaluation
    }


def _text(found: CrossedMean | None) -> str:
    if found is None:
        return human.NONE
    mean = human.fixed(found.mean, DIGITS, sign=True)
    if found.interval is None:
        return mean
    seeds = "" if found.over_seeds else " (1 seed)"
    return f"{mean} ± {human.fixed(found.interval.half, DIGITS)}{seeds}"
