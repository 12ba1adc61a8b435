"""Tables and charts of loss and differences against the values of a swept setting."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gpt2.plan.lr_sweep import RATE
from gpt2.plan.sizes import SIZE
from gpt2.report.arms import Arm
from gpt2.report.lines import DIGITS
from gpt2.report.verdicts import Judgement
from gpt2.settings.shown import shown_name, text_of
from lib import human, stats
from lib.plots import Against, Series, is_number

BEST = "*"  # after the lowest loss
SWEEP = "sweep-"  # and the setting: names of the charts as files
LOSS = "validation loss (nats per token)"
DIFFERENCE = "difference to the partner (nats per token)"
Value = bool | float | str


@dataclass(frozen=True, slots=True)
class SweepRow:
    """Mean validation losses of one arm along an axis, at equal other coordinates."""

    name: str
    arms: dict[Value, Arm]

    @property
    def losses(self) -> dict[Value, float | None]:
        """None for an arm with runs that are missing."""
        return {value: _loss(arm) for value, arm in self.arms.items()}

    @property
    def best(self) -> Value | None:
        """Value with the lowest loss; None until all values have finished."""
        known = {v: loss for v, loss in self.losses.items() if loss is not None}
        if len(known) < max(2, len(self.losses)):
            return None
        return min(known, key=lambda value: known[value])

    @property
    def is_at_edge(self) -> bool:
        """True if the best of several numbers is the smallest or the largest."""
        numbers = [v for v in self.losses if is_number(v)]
        return self.best in (min(numbers), max(numbers)) if numbers else False


@dataclass(frozen=True, slots=True)
class SweepTable:
    """Losses against one setting."""

    axis: str
    values: list[Value]
    rows: list[SweepRow]

    def cells(self, row: SweepRow) -> list[str]:
        """Texts of a row: name, losses with the best one marked, remark."""
        best = None if self.axis == SIZE else row.best  # the largest, without news
        losses = [
            human.fixed(row.losses.get(value), DIGITS)
            + (BEST if best is not None and value == best else "")
            for value in self.values
        ]
        edge = "best at the edge: a better value may lie outside"
        return [row.name, *losses, edge if row.is_at_edge else ""]

    @property
    def name(self) -> str:
        """Name of the swept setting."""
        return shown_name(self.axis)

    @property
    def texts(self) -> list[str]:
        return [text_of(value) for value in self.values]

    @property
    def heads(self) -> list[str]:
        return ["arm", *(f"{self.name}={text}" for text in self.texts), ""]


def sweep_tables(judged: Judgement) -> list[SweepTable]:
    """A table for each setting that was swept over at least two values."""
    arms = [arm for arm in judged.arms if not arm.is_control]
    axes = dict.fromkeys(field for arm in arms for field in arm.coordinates)
    if judged.own_best.arms:  # these have tables of their own
        axes.pop(RATE, None)
    tables = [_table(axis, [a for a in arms if axis in a.coordinates]) for axis in axes]
    return [table for table in tables if len(table.values) > 1]


def _table(axis: str, arms: list[Arm]) -> SweepTable:
    rows: dict[str, dict[Value, Arm]] = {}
    for arm in arms:
        rows.setdefault(arm.name_without(axis), {})[_value(arm, axis)] = arm
    found = dict.fromkeys(value for row in rows.values() for value in row)
    values = sorted(found, key=lambda v: (not is_number(v), v if is_number(v) else 0))
    if axis == SIZE:
        size = {_value(a, axis): a.mean("parameters") or math.inf for a in arms}
        values = sorted(found, key=lambda value: size[value])
    return SweepTable(
        axis, values, [SweepRow(n, by_value) for n, by_value in rows.items()]
    )


def _loss(arm: Arm) -> float | None:
    return arm.mean("val_loss") if len(arm.done) == len(arm.runs) else None


def _value(arm: Arm, axis: str) -> Value:
    value = arm.coordinates[axis]
    assert isinstance(value, bool | int | float | str)
    return value


# ---- charts -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SweepChart:
    """Both charts of a sweep and its table; a chart without points is None."""

    table: SweepTable
    difference: Against | None
    loss: Against | None

    @property
    def panels(self) -> list[Against]:
        return [chart for chart in (self.difference, self.loss) if chart is not None]


def sweep_charts(judged: Judgement) -> list[SweepChart]:
    """A chart for each table of a sweep."""
    return [_chart(table, judged) for table in sweep_tables(judged)]


def _chart(table: SweepTable, judged: Judgement) -> SweepChart:
    losses, differences, partners = [], [], {}
    x, names = _places(table)
    for place, row in enumerate(table.rows, 1):
        ordered = [
            (x[value], row.arms[value]) for value in table.values if value in row.arms
        ]
        losses.append(
            series_of(row.name, place, ((v, *of_losses(a)) for v, a in ordered))
        )
        compared = [(v, c) for v, a in ordered if (c := judged.of(a)) is not None]
        points = (
            (v, c.at_steps.mean, *(c.at_steps.interval or (None, None)))
            for v, c in compared
        )
        differences.append(series_of(row.name, place, points))
        for _, comparison in compared:
            if table.axis not in comparison.partner.coordinates:
                partners[comparison.partner.label] = comparison.partner
    for name, arm in partners.items():
        level = series_of(name, 0, [("", *of_losses(arm))])
        losses.append(dataclasses.replace(level, x=(), is_level=True))
    axis, margin = "parameters" if names else table.name, judged.rules.margin
    return SweepChart(
        table,
        against(axis, DIFFERENCE, differences, margin, names),
        against(axis, LOSS, losses, None, names),
    )


def _places(table: SweepTable) -> tuple[Mapping[Value, Value], Mapping[Value, str]]:
    """Where each value is on the axis, and names for the axis: a size is at the
    parameters of the first arm that has it, if they are known."""
    plain = {value: value for value in table.values}
    if table.axis != SIZE:
        return plain, {}
    of_size: dict[Value, Value] = {}
    for row in table.rows:
        for value, arm in row.arms.items():
            if (parameters := arm.mean("parameters")) is not None:
                of_size.setdefault(value, parameters)
    if len(set(of_size.values())) < len(plain):
        return plain, {}
    return of_size, {of_size[value]: text_of(value) for value in plain}


Point = tuple[Value, float | None, float | None, float | None]


def against(
    axis: str,
    ylabel: str,
    series: Iterable[Series],
    margin: float | None = None,
    names: Mapping[Value, str] | None = None,
) -> Against | None:
    """Chart of the series that have points; None if none has."""
    known = [each for each in series if each.y]
    chart = Against(axis, ylabel, known, margin, names or {})
    return chart if any(each.x for each in known) else None


def series_of(name: str, place: int, points: Iterable[Point]) -> Series:
    """Series of the points (coordinate, value, low, high) that have a value."""
    known = [point for point in points if point[1] is not None]
    x, y, low, high = (tuple(p[i] for p in known) for i in range(4))
    return Series(name, place, x, y, low, high)  # type: ignore[arg-type]


def of_losses(arm: Arm) -> tuple[float | None, float | None, float | None]:
    """Mean loss over the seeds with its 95% interval."""
    losses = arm.values("val_loss")
    interval = stats.t_interval(losses) if losses else None
    return _loss(arm), *(interval or (None, None))
