"""The mean of a table of differences, items by seeds, with its error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from lib.stats import Interval, t_quantile


@dataclass(frozen=True, slots=True)
class CrossedMean:
    """mean; its standard error and the t distribution's degrees of freedom; interval
    at 1 - alpha and two-sided p of "the mean is 0". None where there is one item, or
    without any spread.

    over_seeds: whether the error counts that other seeds would differ. With one seed
    it cannot: it is of these trained models, on other items.
    """

    items: int
    seeds: int
    mean: float
    error: float | None
    interval: Interval | None
    p: float | None

    @property
    def over_seeds(self) -> bool:
        return self.seeds > 1


def crossed_mean(table: Sequence[Sequence[float]]) -> CrossedMean:
    """The mean over both items and seeds, of which each has effects of its own.

    table: for each seed one difference per item, the same items in the same order. All
    items of a seed share its effect and all seeds of an item its effect, so the numbers
    are not independent. The variance is that over seeds plus that over items less that
    of cells, which both contain (Cameron, Gelbach and Miller 2011, eq. 2.11), never
    below the larger of the two; degrees of freedom are those of the smaller side.
    Raises ValueError for an empty table, rows of different lengths or values that are
    not finite.
    """
    cells = np.asarray(table, dtype=np.float64)
    if cells.ndim != 2 or not cells.size or not np.isfinite(cells).all():
        raise ValueError("a table needs finite numbers, as many for each seed")
    seeds, items = cells.shape
    mean = float(cells.mean())
    sides = [side for side in (cells.mean(1), cells.mean(0)) if side.size > 1]
    if not sides:
        return CrossedMean(items, seeds, mean, None, None, None)
    variances = [float(side.var(ddof=1)) / side.size for side in sides]
    both = float(np.square(cells - mean).sum()) / (cells.size * (cells.size - 1))
    variance = variances[0]
    if len(variances) == 2:
        variance = max(sum(variances) - both, *variances)
    error, df = math.sqrt(variance), min(side.size for side in sides) - 1
    if error == 0:
        return CrossedMean(items, seeds, mean, None, None, None)
    half = t_quantile(0.975, df) * error
    p = 2 * float(special.stdtr(df, -abs(mean) / error))
    return CrossedMean(items, seeds, mean, error, Interval(mean - half, mean + half), p)
