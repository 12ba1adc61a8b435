"""Arms (the runs of one cell of a matrix over its seeds) and their comparison partners.

The partner is recorded in each run's job.json, so a results directory can be read on
its own. If that partner was not run, the nearest of its ancestors that was is used, and
the report says so.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gpt2.plan.axes import nearest, swept_name
from gpt2.plan.sizes import SIZE
from gpt2.plan.steps import SHIPPED
from gpt2.report.results import MatrixResults, Run
from gpt2.settings.records import with_before
from gpt2.settings.schema import VOCAB_SIZES
from gpt2.settings.shown import shown_name
from lib.atomic_files import finite
from lib.hashing import diff_fields
from lib.safe_json import clean, number, whole

NOT_A_CHANGE = ("resources.", "matrix.")  # how and where a run is executed


@dataclass(frozen=True, slots=True)
class Arm:
    """One cell of a matrix: one run per seed, ordered by seed."""

    step: int | None
    name: str
    title: str
    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        """Short and unique within a matrix."""
        return self.name if self.step is None else f"{self.step} {self.name}"

    @property
    def key(self) -> dict[str, Any]:
        """Step and name as plain data, which identify it within a matrix."""
        return {"step": self.step, "name": self.name}

    @property
    def coordinates(self) -> dict[str, object]:
        """Values of a sweep that its runs were made at, by setting."""
        return self.runs[0].coordinates if self.runs else {}

    @property
    def size(self) -> object:
        """Size of the model, of SIZES; None without."""
        return self.coordinates.get(SIZE)

    def name_without(self, axis: str) -> str:
        """Name of all cells that differ from this one only in the value of an axis."""
        rest = {field: v for field, v in self.coordinates.items() if field != axis}
        return swept_name(self.label.partition("/")[0], rest)

    @property
    def is_control(self) -> bool:
        """True for an A/A control, which is compared only with its baseline."""
        return any(run.is_control for run in self.runs)

    @property
    def done(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if is_done(run))

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    def is_called(self, name: str) -> bool:
        """Whether that is its step, its name, its label or the folder of its seeds."""
        folders = {run.run_dir.rpartition("/")[0] for run in self.runs}
        return name in {str(self.step), self.name, self.label, *folders}

    @property
    def done_by_seed(self) -> dict[int, Run]:
        return {run.seed: run for run in self.done}

    def values(self, column: str) -> list[float]:
        """Numbers of a column over the finished runs, without missing ones."""
        found = (number(run.row.get(column)) for run in self.done)
        return [value for value in found if value is not None]

    def mean(self, column: str) -> float | None:
        values = self.values(column)
        return math.fsum(values) / len(values) if values else None

    def largest(self, column: str) -> float | None:
        return max(self.values(column), default=None)

    def by_seed(self, column: str) -> dict[int, float]:
        found = {run.seed: number(run.row.get(column)) for run in self.done}
        return {seed: value for seed, value in found.items() if value is not None}


Pair = tuple[Arm, Arm]  # an arm and its partner
NotedPair = tuple[Arm, Arm, str]  # and why the partner is not the recorded one


def is_done(run: Run) -> bool:
    """Finished, with a loss that is a number."""
    return run.row["status"] == "done" and run.row["val_loss"] is not None


def has_diverged(run: Run) -> bool:
    """True if a run failed with a NaN loss or finished without a loss."""
    is_lost = run.row["status"] == "done" and run.row["val_loss"] is None
    return run.row["failure"] == "nan" or is_lost


def above_guess(run: Run) -> str:
    """Message if a finished run ended above the loss of a uniform guess, else ""."""
    tokenizer = run.part("data").get("tokenizer")
    size = VOCAB_SIZES.get(tokenizer) if isinstance(tokenizer, str) else None
    if not is_done(run) or size is None or run.row["val_loss"] <= math.log(size):
        return ""
    guess = f"ln({size}) = {math.log(size):.3f} of a uniform guess"
    return f"ended at {run.row['val_loss']:.3f}, above {guess}"


def group_arms(matrix: MatrixResults) -> list[Arm]:
    """Group runs by step and name, in the order of the matrix, without those that
    choose a learning rate: no verdict uses them."""
    return _grouped(run for run in matrix.runs if not run.is_tuning)


def tuning_arms(matrix: MatrixResults) -> list[Arm]:
    """The runs that choose a learning rate, grouped like the others."""
    return _grouped(run for run in matrix.runs if run.is_tuning)


def _grouped(found: Iterable[Run]) -> list[Arm]:
    groups: dict[tuple[int | None, str], list[Run]] = {}
    for run in found:
        groups.setdefault((run.row["step"], run.row["name"]), []).append(run)
    arms = []
    for (step, name), runs in groups.items():
        runs.sort(key=lambda r: -1 if r.seed is None else int(r.seed))
        title = next((r.row["title"] for r in runs if r.row["title"]), name)
        arms.append(Arm(step, name, title, tuple(runs)))
    return arms


def partner_of(arm: Arm, arms: Iterable[Arm]) -> tuple[Arm | None, str]:
    """The arm's comparison partner, and a note if that is not the recorded one.

    A cell of a test matrix names its partner; if no cell names one, all are compared
    with the first. In a sweep the partner has the same coordinates. None for a
    baseline, and if none of its ancestors was run (the note says so).
    """
    arms = [other for other in arms if not other.is_control]
    others = [other for other in arms if other is not arm]
    parent, name = _asked_for(arm)
    if arm.step is None:
        return _cell_partner(arm, arms, name)
    if parent is None:
        return None, ""
    for wanted in _ancestors(arm, parent):
        match = _at_point(arm, [o for o in others if o.step == wanted], name)
        if match is not None:
            note = "" if wanted == parent else f"step {parent} was not run"
            return match, note or _other_axes(arm, match)
    return None, f"step {parent}, its comparison partner, was not run"


def _at_point(arm: Arm, candidates: list[Arm], name: str | None) -> Arm | None:
    """The recorded cell of a step, else the one with the nearest coordinates."""
    if named := next((other for other in candidates if other.name == name), None):
        return named
    points = [other.coordinates for other in candidates]
    point = nearest(arm.coordinates, points, {})
    return None if point is None else candidates[points.index(dict(point))]


def _other_axes(arm: Arm, partner: Arm) -> str:
    """Note if a partner is swept over settings that the arm does not read."""
    rest = [name for name in partner.coordinates if name not in arm.coordinates]
    verb = "makes" if len(rest) == 1 else "make"
    names = " and ".join(map(shown_name, rest))
    return f"{names} {verb} no difference to it" if rest else ""


def _cell_partner(
    arm: Arm, arms: list[Arm], name: str | None
) -> tuple[Arm | None, str]:
    if name is not None and name != arm.name:
        match = next((other for other in arms if other.name == name), None)
        if match is None:
            return None, f"{name}, its comparison partner, was not run"
        return match, ""
    if any(_asked_for(other)[1] for other in arms):
        return None, ""  # other cells name a partner, so this one is a baseline
    first = next(other for other in arms if other.step is None)
    return (None, "") if first is arm else (first, "")


def _ancestors(arm: Arm, parent: int) -> Iterator[int]:
    """The parent and its ancestors, as recorded in the arm's jobs; results that have
    no record are of shipped steps."""
    yield parent
    recorded = [run.job.get("ancestors") for run in arm.runs]
    found = next((x for x in recorded if isinstance(x, list) and x[:1] == [parent]), [])
    if not found and parent in SHIPPED.steps:
        found = [step.id for step in SHIPPED.lineage(parent)][::-1]
    yield from (x for x in found[1:] if whole(x) is not None)


def _asked_for(arm: Arm) -> tuple[int | None, str | None]:
    """Step id and name of the partner recorded in the arm's jobs."""
    parents = [run.row["parent"] for run in arm.runs]
    names = [run.job.get("parent_name") for run in arm.runs]
    name = next((clean(x) for x in names if isinstance(x, str) and x), None)
    return next((x for x in parents if x is not None), None), name


# ---- configurations -------------------------------------------------------------

Change = tuple[str, object, object]


def config_changes(old: Mapping, new: Mapping) -> list[Change]:
    """Differing settings (dotted name, old, new); one entry if unreadable."""
    try:
        return diff_fields(finite(with_before(old)), finite(with_before(new)))
    except (TypeError, ValueError, RecursionError):
        return [("settings", "unreadable", "unreadable")]


def changes_between(old: Arm, new: Arm) -> list[Change]:
    """Settings that differ between two arms, except how and where they were run."""
    if not (old.runs and new.runs):
        return []
    found = config_changes(old.runs[0].settings, new.runs[0].settings)
    return [change for change in found if not change[0].startswith(NOT_A_CHANGE)]


# ---- curves ---------------------------------------------------------------------


def update_seconds(arm: Arm) -> float | None:
    """Usual seconds of an update: the median over all records of training.

    Not the mean of a run: others that prepare on the same GPU slow some of its updates,
    which is not a property of the arm. None without such records.
    """
    found = [
        record["tokens"] / record["step"] / record["tokens_per_s"]
        for run in arm.done
        for record in run.trains
        if record.get("step") and record.get("tokens") and record.get("tokens_per_s")
    ]
    return statistics.median(found) if found else None


def losses_over_time(run: Run, per_update: float | None) -> list[tuple[float, float]]:
    """(seconds of training, validation loss) of each evaluation, in order of time.

    per_update: usual seconds of an update of its arm; None: by the run's own clock.
    """
    points = {}
    for record in run.evals:
        seconds = record.get("seconds")
        if per_update is not None and "step" in record:
            seconds = record["step"] * per_update
        if seconds is not None and "val_loss" in record:
            points[seconds] = record["val_loss"]
    return sorted(points.items())
