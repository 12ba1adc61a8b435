"""A validation loss at a time between two evaluations, and how uncertain it is."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple


class Reading(NamedTuple):
    """A loss in nats per token, and the variance of its error."""

    loss: float
    variance: float = 0.0


def read(points: Sequence[tuple[float, float]], seconds: float) -> Reading | None:
    """Loss at a time, from (seconds, loss) of two or more evaluations in order of time.

    By a monotone cubic through all of them (Fritsch and Butland 1984, as in scipy). The
    straight line between two evaluations lies above a loss that falls ever more slowly:
    at 124M by 0.01 to 0.1 nats, against the slower of two arms. The error counts as
    uniform between that line and the lowest that such a curve can be: the lower of both
    evaluations, and lines through the neighbouring pairs (Guide to the Expression of
    Uncertainty in Measurement, 4.3.7). None before the first and after the last.
    """
    if not points or not points[0][0] <= seconds <= points[-1][0]:
        return None
    times, losses = zip(*points, strict=True)
    after = bisect_left(times, seconds)
    if times[after] == seconds:
        return Reading(losses[after])
    # Takes 0.1 s to import, and a report of equal speeds does not need it.
    from scipy.interpolate import PchipInterpolator

    loss = float(PchipInterpolator(times, losses)(seconds))
    above = _line(points, after, seconds)
    below = min(losses[after - 1], losses[after])
    for other in (after - 1, after + 1):
        if 0 < other < len(points):
            line = _line(points, other, seconds)
            if line <= above:  # else the loss fell faster there than before
                below = max(below, line)
    down, up = max(loss - below, 0.0), max(above - loss, 0.0)
    width = down + up
    return Reading(loss, (down**3 + up**3) / (3 * width) if width else 0.0)


def _line(points: Sequence[tuple[float, float]], after: int, seconds: float) -> float:
    (start, first), (end, second) = points[after - 1 : after + 1]
    return first + (second - first) / (end - start) * (seconds - start)
