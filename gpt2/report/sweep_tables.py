"""Tables of loss against the values of a swept setting."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2.plan.axes import label, text_of
from gpt2.plan.lr_sweep import RATE
from gpt2.report.arms import Arm
from gpt2.report.verdicts import Judgement
from lib import human

DIGITS = 4  # of losses, nats
BEST = "*"
Value = bool | float | str


@dataclass(frozen=True, slots=True)
class SweepRow:
    """Mean validation losses of one arm along an axis, at equal other coordinates."""

    name: str
    losses: dict[Value, float | None]

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
        numbers = [v for v in self.losses if _is_number(v)]
        return self.best in (min(numbers), max(numbers)) if numbers else False


@dataclass(frozen=True, slots=True)
class SweepTable:
    """Losses against one setting."""

    axis: str
    values: list[Value]
    rows: list[SweepRow]

    def cells(self, row: SweepRow) -> list[str]:
        """Texts of a row: name, losses with the best one marked, remark."""
        best = row.best
        losses = [
            human.fixed(row.losses.get(value), DIGITS)
            + (BEST if best is not None and value == best else "")
            for value in self.values
        ]
        edge = "best at the edge: a better value may lie outside"
        return [row.name, *losses, edge if row.is_at_edge else ""]

    @property
    def heads(self) -> list[str]:
        return ["arm", *(f"{self.axis}={text_of(value)}" for value in self.values), ""]


def sweep_tables(judged: Judgement) -> list[SweepTable]:
    """A table for each setting that was swept over at least two values."""
    arms = [arm for arm in judged.arms if not arm.is_control]
    axes = dict.fromkeys(field for arm in arms for field in arm.coordinates)
    if judged.own_best.arms:  # these have tables of their own
        axes.pop(RATE, None)
    tables = [_table(axis, [a for a in arms if axis in a.coordinates]) for axis in axes]
    return [table for table in tables if len(table.values) > 1]


def _table(axis: str, arms: list[Arm]) -> SweepTable:
    rows: dict[str, dict[Value, float | None]] = {}
    for arm in arms:
        rest = {field: v for field, v in arm.coordinates.items() if field != axis}
        name = arm.label.partition("/")[0]
        row = rows.setdefault(f"{name}/{label(rest)}" if rest else name, {})
        done = len(arm.done) == len(arm.runs)
        row[_value(arm, axis)] = arm.mean("val_loss") if done else None
    found = dict.fromkeys(value for row in rows.values() for value in row)
    values = sorted(found, key=lambda v: (not _is_number(v), v if _is_number(v) else 0))
    return SweepTable(axis, values, [SweepRow(n, losses) for n, losses in rows.items()])


def _value(arm: Arm, axis: str) -> Value:
    value = arm.coordinates[axis]
    assert isinstance(value, bool | int | float | str)
    return value


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
