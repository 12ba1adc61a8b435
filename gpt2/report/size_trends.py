"""Differences against the size of the model: does a gain survive at the next size?

The trend of an arm is the slope of its difference over log10 of the partner's
parameters. A least-squares line is fitted for each seed by itself, and Student's t is
applied to the slopes: seeds are independent, whatever the noise is at each size and
however the sizes of one seed depend on each other. p is corrected over the trends of
the report by Holm's method. For three sizes or more, the same test of the quadratic
part says whether a line describes them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpt2.plan.sizes import SIZE
from gpt2.report.grades import INVALID, UNMATCHED
from lib import stats
from lib.rounded_losses import resolution, rounding_variance

if TYPE_CHECKING:
    from gpt2.report.verdicts import Comparison, Judgement


@dataclass(frozen=True, slots=True)
class SizePoint:
    """Comparison of an arm at one size. parameters: of its partner."""

    size: str
    parameters: float
    comparison: Comparison

    @property
    def is_usable(self) -> bool:
        verdict = self.comparison.at_steps
        return verdict.grade not in (INVALID, UNMATCHED) and bool(verdict.differences)

    @property
    def by_seed(self) -> dict[int, float]:
        verdict = self.comparison.at_steps
        return dict(zip(verdict.seeds, verdict.differences, strict=True))

    @property
    def rounding(self) -> float:
        """Variance that rounded losses add to a difference."""
        arms = (self.comparison.arm, self.comparison.partner)
        return rounding_variance(*(resolution(a.values("val_loss")) for a in arms))


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """Change of the difference per tenfold parameters, nats, over seeds.

    p_bend: of the quadratic part; None for two sizes.
    """

    mean: float
    interval: stats.Interval
    p: float
    p_holm: float = 1.0
    p_bend: float | None = None
    seeds: tuple[int, ...]
    sizes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SizeTrend:
    """Differences of an arm by size, ascending, and their slope, or why it has none."""

    name: str
    points: tuple[SizePoint, ...]
    slope: Slope | None
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "points": [
                {
                    "size": point.size,
                    "parameters": point.parameters,
                    "mean": point.comparison.at_steps.mean,
                    "grade": point.comparison.at_steps.grade,
                }
                for point in self.points
            ],
            "slope": None if self.slope is None else dataclasses.asdict(self.slope),
            "why": self.why,
        }


def size_trends(judged: Judgement) -> list[SizeTrend]:
    """Trends of the arms that are compared at two sizes or more."""
    found: dict[str, list[SizePoint]] = {}
    for comparison in judged.comparisons:
        at = comparison.arm.coordinates
        parameters = comparison.partner.mean("parameters")
        if SIZE not in at or parameters is None:
            continue
        point = SizePoint(str(at[SIZE]), parameters, comparison)
        found.setdefault(comparison.arm.name_without(SIZE), []).append(point)
    trends = [
        _trend(name, sorted(points, key=lambda p: p.parameters), judged.rules.alpha)
        for name, points in found.items()
        if len(points) > 1
    ]
    return _corrected(trends)


def _trend(name: str, points: Sequence[SizePoint], alpha: float) -> SizeTrend:
    usable = [point for point in points if point.is_usable]
    shared = [point.by_seed.keys() for point in usable]
    seeds = tuple(sorted(set.intersection(*map(set, shared)))) if shared else ()
    why = ""
    if len({point.parameters for point in usable}) < 2:
        why = "fewer than two sizes have a valid comparison at equal budgets"
    elif len(seeds) < stats.MIN_SEEDS:
        why = f"fewer than {stats.MIN_SEEDS} seeds are finished at all sizes"
    slope = None if why else fit(usable, seeds, alpha)
    return SizeTrend(name, tuple(points), slope, why)


def fit(points: Sequence[SizePoint], seeds: Sequence[int], alpha: float) -> Slope:
    """Slope over points that all have these seeds; p_holm is not corrected yet."""
    x = [math.log10(point.parameters) for point in points]
    line, bend = contrasts(x)
    rounding = [point.rounding for point in points]

    def over_seeds(weights: Sequence[float]) -> tuple[list[float], float]:
        values = [
            math.fsum(w * p.by_seed[s] for w, p in zip(weights, points, strict=True))
            for s in seeds
        ]
        variance = math.fsum(w * w * r for w, r in zip(weights, rounding, strict=True))
        return values, variance

    slopes, variance = over_seeds(line)
    interval = stats.t_interval(slopes, alpha, variance)
    p = stats.t_test(slopes, variance)
    assert interval is not None and p is not None  # two seeds at least
    bends = None if bend is None else stats.t_test(*over_seeds(bend))
    return Slope(
        mean=stats.describe(slopes).mean,
        interval=interval,
        p=p,
        p_bend=bends,
        seeds=tuple(seeds),
        sizes=tuple(point.size for point in points),
    )


def contrasts(x: Sequence[float]) -> tuple[list[float], list[float] | None]:
    """Weights that give the slope of a least-squares line over x, and weights of the
    quadratic part, which are 0 on every line; None for fewer than three values."""
    centred = _centred(x)
    spread = math.fsum(value**2 for value in centred)
    line = [value / spread for value in centred]
    if len(set(x)) < 3:
        return line, None
    square = _centred([value**2 for value in centred])
    along = math.fsum(w * y for w, y in zip(line, square, strict=True))
    bend = [y - along * value for y, value in zip(square, centred, strict=True)]
    return line, bend


def _centred(values: Sequence[float]) -> list[float]:
    mean = math.fsum(values) / len(values)
    return [value - mean for value in values]


def _corrected(trends: Sequence[SizeTrend]) -> list[SizeTrend]:
    """The trends with Holm's correction of both tests over all of them."""

    def holm(p_of: Callable[[Slope], float | None]) -> list[float]:
        found = [None if t.slope is None else p_of(t.slope) for t in trends]
        return stats.holm([1.0 if p is None else p for p in found])

    def changed(slope: Slope, p: float, bend: float) -> Slope:
        p_bend = None if slope.p_bend is None else bend
        return dataclasses.replace(slope, p_holm=p, p_bend=p_bend)

    ps = zip(holm(lambda s: s.p), holm(lambda s: s.p_bend), strict=True)
    return [
        dataclasses.replace(t, slope=t.slope and changed(t.slope, *p))
        for t, p in zip(trends, ps, strict=True)
    ]
