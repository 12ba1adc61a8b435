"""Cross the cells of a plan with the points of a sweep (gpt2/plan/axes.py).

Each point of the grid is planned like a configuration of its own. A cell has an axis as
a coordinate only if what it trains depends on it, so that a step that does not read a
swept setting is one run and not many. Torch-free.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpt2.plan.axes import Axis, Point, grid, nearest, swept_name, titled
from gpt2.plan.matrix_cells import LeftOutCell

if TYPE_CHECKING:
    from gpt2.plan.jobs import Job, Plan

Frozen = tuple[tuple[str, Any], ...]


def frozen(point: Point) -> Frozen:
    return tuple(point.items())


@dataclass(frozen=True, slots=True)
class SweptCell:
    """Jobs of one cell of a plan at one point, one for each seed."""

    arm: str  # its folder without a sweep
    point: Point
    jobs: tuple[Job, ...]

    @property
    def name(self) -> str:
        return swept_name(self.jobs[0].name, self.point)

    @property
    def folder(self) -> str:
        return swept_name(self.arm, self.point)


@dataclass(slots=True)
class Sweep:
    """A plan crossed with a grid.

    plan_at: plan at a point of some or all axes. trained: identity of what a job
    trains, without settings that it does not read.
    """

    axes: Sequence[Axis]
    plan_at: Callable[[Point], Plan]
    trained: Callable[[Job], str]
    usual: Point  # values without the sweep
    plans: dict[Frozen, Plan] = field(default_factory=dict)  # that are known
    _cells: dict[Frozen, dict[str, SweptCell]] = field(default_factory=dict)

    def crossed(self) -> Plan:
        """The plan with all cells; ``parts`` has the plan of each point, with the
        names that its cells have in the whole."""
        points = list(grid(self.axes))
        arms = dict.fromkeys(arm for p in points for arm in self._cells_at(p))
        homes = {arm: self._homes(arm, points) for arm in arms}
        cells: dict[str, SweptCell] = {}
        owners: dict[str, str] = {}  # folder of a cell by what it trains
        same: dict[str, str] = {}  # folder that is left out -> the one that is kept
        for arm, by_point in homes.items():
            for home in dict.fromkeys(by_point.values()):
                cell = self._cell(arm, home, by_point)
                owner = owners.setdefault(self.trained(cell.jobs[0]), cell.folder)
                if owner == cell.folder:
                    cells[owner] = cell
                same[cell.folder] = owner
        names = _Names(cells, same, homes, self.usual)
        base = self._plan({})
        plans = [self._plan(point) for point in points]
        left_out = [x for plan in plans for x in plan.left_out] + [
            LeftOutCell(folder, f"trains the same as {owner}")
            for folder, owner in same.items()
            if folder != owner
        ]
        return dataclasses.replace(
            base,
            jobs=tuple(j for c in cells.values() for j in names.jobs(c, c.point)),
            left_out=tuple(dict.fromkeys(left_out)),
            parts=tuple(self._parts(points, names)),
            axes=tuple(self.axes),
        )

    def _plan(self, point: Point) -> Plan:
        key = frozen(point)
        if key not in self.plans:
            self.plans[key] = self.plan_at(point)
        return self.plans[key]

    def _cells_at(self, point: Point) -> dict[str, SweptCell]:
        """Cells at a point by their folders without a sweep."""
        key = frozen(point)
        if key not in self._cells:
            groups: dict[str, list[Job]] = {}
            for job in self._plan(point).jobs:
                groups.setdefault(job.cell, []).append(job)
            self._cells[key] = {
                arm: SweptCell(arm, point, tuple(jobs)) for arm, jobs in groups.items()
            }
        return self._cells[key]

    def _homes(self, arm: str, points: Sequence[Point]) -> dict[Frozen, Frozen]:
        """Coordinates of an arm's cell by point of the grid: the axes whose values
        change what it trains, all others being equal."""
        trained = {
            frozen(point): self.trained(cells[arm].jobs[0])
            for point in points
            if arm in (cells := self._cells_at(point))
        }
        homes = {
            key: frozen(
                {
                    axis.field: point[axis.field]
                    for axis in self.axes
                    for point in [dict(key)]
                    if axis.is_in_all or len(_along(axis, point, trained)) > 1
                }
            )
            for key in trained
        }
        # Two axes that have an effect only together would share a home: keep both.
        kinds: dict[Frozen, set[str]] = {}
        for key, home in homes.items():
            kinds.setdefault(home, set()).add(trained[key])
        return {k: home if len(kinds[home]) == 1 else k for k, home in homes.items()}

    def _cell(
        self, arm: str, home: Frozen, by_point: Mapping[Frozen, Frozen]
    ) -> SweptCell:
        """Cell at its coordinates. Settings that it does not read are the configured
        ones, as without a sweep, so that both share a run."""
        swept = next(key for key, mine in by_point.items() if mine == home)
        there = self._cells_at(dict(swept))[arm]
        usual = self._cells_at(dict(home)).get(arm)
        if usual is None or self.trained(usual.jobs[0]) != self.trained(there.jobs[0]):
            usual = there
        return SweptCell(arm, dict(home), usual.jobs)

    def _parts(self, points: Sequence[Point], names: _Names) -> Iterator[Plan]:
        for point in points:
            jobs = [
                job
                for arm, cell in self._cells_at(point).items()
                if (home := names.kept(arm, point)) is not None
                for job in names.jobs(cell, home)
            ]
            yield dataclasses.replace(self._plan(point), jobs=tuple(jobs))


def _along(axis: Axis, point: Point, trained: Mapping[Frozen, str]) -> set[str | None]:
    """Identities of the runs at all values of an axis, the others as at a point."""
    return {trained.get(frozen({**point, axis.field: value})) for value in axis.values}


@dataclass(frozen=True, slots=True)
class _Names:
    """Names, folders and partners of the cells of a crossed plan."""

    cells: Mapping[str, SweptCell]
    same: Mapping[str, str]
    homes: Mapping[str, Mapping[Frozen, Frozen]]
    usual: Point

    def kept(self, arm: str, point: Point) -> Point | None:
        """Coordinates of an arm's cell at a point; None if it is left out."""
        home = dict(self.homes[arm][frozen(point)])
        return home if swept_name(arm, home) in self.cells else None

    def jobs(self, cell: SweptCell, home: Point) -> list[Job]:
        """Jobs of a cell under the name that it has at its coordinates."""
        named = dataclasses.replace(cell, point=home)
        partner = self._partner(named)
        changes: dict[str, Any] = {}
        if home:
            title = titled(cell.jobs[0].title, home)
            changes = {"title": title, "coordinates": dict(home)}
        if partner is not None:
            step = partner.jobs[0].step
            changes |= {"parent": step, "parent_name": partner.name}
            if step is not None:
                changes["ancestors"] = (step, *partner.jobs[0].ancestors)
        return [
            dataclasses.replace(
                job,
                name=named.name,
                run_dir=f"{named.folder}/seed{job.seed}",
                **changes,
            )
            for job in cell.jobs
        ]

    def _partner(self, cell: SweptCell) -> SweptCell | None:
        """Comparison partner of a cell, if it is in the plan."""
        first = cell.jobs[0]
        step = "" if first.parent is None else f"step{first.parent:02d}-"
        arm = f"{step}{first.parent_name}"
        homes = dict.fromkeys(self.homes.get(arm, {}).values())
        others = [h for h in map(dict, homes) if self._owner(arm, h) != cell.folder]
        point = nearest(cell.point, others, self.usual)
        return None if point is None else self.cells[self._owner(arm, point)]

    def _owner(self, arm: str, point: Point) -> str:
        return self.same[swept_name(arm, point)]
