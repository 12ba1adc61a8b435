"""Loss curves of an arm over its seeds, for the plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpt2.report.arms import Arm
from lib.safe_json import number

AXES = ("step", "tokens", "seconds")
MAX_POINTS = 240
Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Band:
    """Mean, minimum and maximum over ``seeds`` runs at each x."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    seeds: int


def band(
    arm: Arm, axis: str, kind: str = "eval", base: Arm | None = None
) -> Band | None:
    """Validation (or training) loss of an arm over updates, tokens or seconds.

    Uses the finished runs, or all started ones if none has finished. Curves are
    interpolated linearly to common x, in the range where all have values. None if there
    is nothing to draw.
    base: draw the difference to this arm, seed by seed.
    """
    by_seed = _by_seed(arm, axis, kind)
    if base is not None:
        theirs = _by_seed(base, axis, kind)
        by_seed = [(s, _minus(ps, o)) for s, ps in by_seed for t, o in theirs if s == t]
    curves = [points for _, points in by_seed if points]
    if not curves:
        return None
    first = max(points[0][0] for points in curves)
    last = min(points[-1][0] for points in curves)
    grid = sorted({x for points in curves for x, _ in points if first <= x <= last})
    if not grid:
        return None
    values = np.array(
        [np.interp(grid, [x for x, _ in ps], [y for _, y in ps]) for ps in curves]
    )
    rows = (grid, values.mean(axis=0), values.min(axis=0), values.max(axis=0))
    x, mean, low, high = (_thin(list(row), kind == "train") for row in rows)
    return Band(x, mean, low, high, len(curves))


def _by_seed(arm: Arm, axis: str, kind: str) -> list[tuple[object, Points]]:
    runs = arm.done or arm.runs
    found = [(run, run.evals if kind == "eval" else run.trains) for run in runs]
    return [(run.seed, _points(records, axis, kind)) for run, records in found]


def _minus(points: Points, base: Points) -> Points:
    """Each y minus the base's, interpolated linearly, where the base has values."""
    inside = [(x, y) for x, y in points if base and base[0][0] <= x <= base[-1][0]]
    at = np.interp(
        [x for x, _ in inside], [x for x, _ in base] or [0], [y for _, y in base] or [0]
    )
    return [(x, y - float(less)) for (x, y), less in zip(inside, at, strict=True)]


def _points(records: Sequence[dict[str, float]], axis: str, kind: str) -> Points:
    """Points (x, loss) with increasing x, for losses that are numbers."""
    key = "val_loss" if kind == "eval" else "loss"
    points: Points = []
    for record in records:
        x, y = number(record.get(axis)), number(record.get(key))
        if x is not None and y is not None and (not points or x > points[-1][0]):
            points.append((float(x), float(y)))
    return points


def _thin(values: Sequence[float], average: bool) -> list[float]:
    """At most MAX_POINTS: averages of noisy values, else picked with both ends."""
    data = np.asarray(values, dtype=float)
    if len(data) <= MAX_POINTS:
        kept = data
    elif average:
        kept = np.array([part.mean() for part in np.array_split(data, MAX_POINTS)])
    else:
        kept = data[np.linspace(0, len(data) - 1, MAX_POINTS).round().astype(int)]
    return [float(f"{value:.7g}") for value in kept]
