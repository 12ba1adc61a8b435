"""Scores of several arms, and how each differs from the first. Torch-free."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpt2.report.evaluation_columns import paired_difference
from gpt2.report.evaluations import Measure
from lib.items_by_seeds import CrossedMean
from lib.stats import holm


@dataclass(frozen=True, slots=True)
class ScoredRun:
    """One model: its arm, seed, folder, hash, and measures by name.

    positions: mean loss by position in the context, in powers of two, by first one.
    harness: results of lm-evaluation-harness, as it reports them.
    """

    arm: str
    seed: int
    run_dir: str
    hash: str
    measures: Mapping[str, Measure]
    positions: Mapping[int, float]
    harness: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MeasureOfArm:
    """Mean of a measure over an arm's seeds and items; difference from the first arm,
    over the seeds that both have with the same items, and its p corrected over all
    differences (Holm). None for the first arm, and without such a seed."""

    measure: str
    arm: str
    mean: float
    difference: CrossedMean | None
    p_holm: float | None = None

    def to_json(self) -> dict[str, Any]:
        data = dataclasses.asdict(self)
        if self.difference is not None and self.difference.interval is not None:
            data["difference"]["interval"] = self.difference.interval._asdict()
        return data


def compare_arms(runs: Sequence[ScoredRun]) -> list[MeasureOfArm]:
    """Each measure of each arm, in the order of the runs; the first arm is what the
    others are compared with."""
    arms: dict[str, dict[int, ScoredRun]] = {}
    for run in runs:
        arms.setdefault(run.arm, {})[run.seed] = run
    first = next(iter(arms.values()))
    measures = dict.fromkeys(name for run in runs for name in run.measures)
    rows = [
        _row(measure, arm, by_seed, first)
        for measure in measures
        for arm, by_seed in arms.items()
        if all(measure in run.measures for run in by_seed.values())
    ]
    return _corrected(rows)


def _row(
    measure: str,
    arm: str,
    by_seed: Mapping[int, ScoredRun],
    first: Mapping[int, ScoredRun],
) -> MeasureOfArm:
    own, base = (
        {s: run.measures[measure] for s, run in runs.items() if measure in run.measures}
        for runs in (by_seed, first)
    )
    values = [value for one in own.values() for value in one.items]
    mean = math.fsum(values) / len(values)
    found = None if by_seed is first else paired_difference(own, base)
    return MeasureOfArm(measure, arm, mean, found)


def _corrected(rows: list[MeasureOfArm]) -> list[MeasureOfArm]:
    raw = [row.difference.p if row.difference else None for row in rows]
    places = [place for place, p in enumerate(raw) if p is not None]
    adjusted = dict(zip(places, holm([raw[n] or 0.0 for n in places]), strict=True))
    return [
        dataclasses.replace(row, p_holm=adjusted.get(place))
        for place, row in enumerate(rows)
    ]


def by_powers(positions: Sequence[tuple[float, int]]) -> dict[int, float]:
    """Mean loss of positions 0, 1, 2-3, 4-7, ..., by the first of each."""
    found, start = {}, 0
    while start < len(positions):
        stop = max(1, 2 * start)
        part = positions[start:stop]
        count = sum(n for _, n in part)
        if count:
            found[start] = math.fsum(total for total, _ in part) / count
        start = stop
    return found


def spans(first: int) -> str:
    """Positions that ``first`` of by_powers stands for."""
    return str(first) if first < 2 else f"{first} to {2 * first - 1}"


def position_rows(
    runs: Sequence[ScoredRun],
) -> Iterator[tuple[str, list[float | None]]]:
    """(positions, mean loss of each run)."""
    starts = sorted({start for run in runs for start in run.positions})
    for start in starts:
        yield spans(start), [run.positions.get(start) for run in runs]
