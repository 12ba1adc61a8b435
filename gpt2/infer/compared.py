"""Scores of several arms, and how each differs from the first. Torch-free."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lib.items_by_seeds import CrossedMean, crossed_mean
from lib.stats import holm


@dataclass(frozen=True, slots=True)
class ScoredRun:
    """One model: its arm, seed, folder, and a number per item by measure.

    positions: mean loss by position in the context, in powers of two, by first one.
    """

    arm: str
    seed: int
    run_dir: str
    items: Mapping[str, Sequence[float]]
    positions: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class MeasureOfArm:
    """Mean of a measure over an arm's seeds and items; difference from the first arm,
    by items and the seeds that both have, and its p corrected over all differences
    (Holm). None for the first arm, and where no seed is shared."""

    measure: str
    arm: str
    mean: float
    difference: CrossedMean | None
    p_holm: float | None = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def compare_arms(runs: Sequence[ScoredRun]) -> list[MeasureOfArm]:
    """Each measure of each arm, in the order of the runs; the first arm is what the
    others are compared with."""
    arms: dict[str, dict[int, ScoredRun]] = {}
    for run in runs:
        arms.setdefault(run.arm, {})[run.seed] = run
    first = next(iter(arms.values()))
    measures = dict.fromkeys(name for run in runs for name in run.items)
    rows = [
        _row(measure, arm, by_seed, first)
        for measure in measures
        for arm, by_seed in arms.items()
        if all(measure in run.items for run in by_seed.values())
    ]
    return _corrected(rows)


def _row(
    measure: str,
    arm: str,
    by_seed: Mapping[int, ScoredRun],
    first: Mapping[int, ScoredRun],
) -> MeasureOfArm:
    values = [value for run in by_seed.values() for value in run.items[measure]]
    mean = math.fsum(values) / len(values)
    shared = [seed for seed in by_seed if seed in first and by_seed is not first]
    table = [
        [a - b for a, b in zip(*_both(measure, by_seed[s], first[s]), strict=True)]
        for s in shared
        if measure in first[s].items
    ]
    return MeasureOfArm(measure, arm, mean, crossed_mean(table) if table else None)


def _both(
    measure: str, one: ScoredRun, other: ScoredRun
) -> tuple[Sequence[float], Sequence[float]]:
    return one.items[measure], other.items[measure]


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
