"""Two runs, arms or matrices side by side: configuration, environment, results.

A subject is named by a directory (a matrix, an arm, a run), by a bundle, or within a
results directory by a step ("5", or "5:1337" for one seed) or a name ("ra").
Differences are B minus A.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2.report.arms import Arm, Change, config_changes, group_arms
from gpt2.report.bundle import results_folder
from gpt2.report.checklist import ENVIRONMENT
from gpt2.report.evidence import Rules
from gpt2.report.read_results import read_matrix
from gpt2.report.results import NUMBERS, LeftOutRun, Run, seeds_of
from gpt2.report.verdicts import Comparison, compare
from lib import human


@dataclass(frozen=True, slots=True)
class ComparedSide:
    """Arms on one side of a comparison, often a single one, of runs below ``root``."""

    label: str
    arms: list[Arm]
    left_out: list[LeftOutRun]
    root: Path

    @property
    def folders(self) -> set[Path]:
        runs = [run for arm in self.arms for run in arm.runs]
        return {(self.root / run.run_dir).resolve() for run in runs}


@dataclass(frozen=True, slots=True)
class MatchedArms:
    """An arm of A and its counterpart in B, with all differences."""

    a: Arm
    b: Arm
    comparison: Comparison
    settings: list[Change]
    environment: list[Change]
    results: list[tuple[str, float | None, float | None]]

    @property
    def is_same(self) -> bool:
        """True if both sides have the same run hashes, that is, the same settings."""
        return [r.row["hash"] for r in self.a.runs] == [
            r.row["hash"] for r in self.b.runs
        ] and self.a.runs[0].row["hash"] is not None

    def to_json(self) -> dict[str, Any]:
        """The arms by step and name, each change as name, value of A, value of B."""
        return {
            "a": self.a.key,
            "b": self.b.key,
            "is_same": self.is_same,
            "settings": _rows(self.settings),
            "environment": _rows(self.environment),
            "results": _rows(self.results),
            "at_equal_steps": self.comparison.at_steps.to_json(),
            "at_equal_time": self.comparison.at_time.to_json(),
        }


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Matched arms, and those that only one side has."""

    pairs: list[MatchedArms]
    only_a: list[Arm]
    only_b: list[Arm]

    def to_json(self) -> dict[str, Any]:
        return {
            "pairs": [pair.to_json() for pair in self.pairs],
            "only_a": [arm.key for arm in self.only_a],
            "only_b": [arm.key for arm in self.only_b],
        }


def _rows(changes: Iterable[tuple[str, object, object]]) -> list[dict[str, object]]:
    return [{"name": name, "a": x, "b": y} for name, x, y in changes]


def find_subject(name: str, results: Path | None) -> ComparedSide:
    """Find the arms of a name; ValueError lists what exists if there are none.

    results: the results directory in which steps and names are looked up.
    """
    if not name:
        raise ValueError("name both sides: make compare A=FOLDER_OR_STEP B=...")
    folder = results_folder(Path(name))
    if folder.is_dir():
        matrix = read_matrix(folder)
        if not matrix.runs:
            raise ValueError(f"there are no runs in {name}")
        arms = group_arms(matrix)
        tested = [arm for arm in arms if not arm.is_control]
        return ComparedSide(name, tested or arms, matrix.left_out, folder)
    if results is None or not results.is_dir():
        raise ValueError(
            f"{name!r} is not a directory, and there are no results to look it up in"
        )
    matrix = read_matrix(results)
    arms = group_arms(matrix)
    which, _, seed = name.partition(":")
    chosen = [arm for arm in arms if arm.is_called(which)]
    if not chosen:
        known = ", ".join(arm.label for arm in arms) or "nothing"
        raise ValueError(
            f"{name!r} is neither a directory nor an arm of {results}: {known}"
        )
    tested = [arm for arm in chosen if not arm.is_control]
    if len(tested) > 1:
        names = ", ".join(arm.name for arm in tested)
        raise ValueError(
            f"{name!r} names {len(tested)} arms of a sweep: name one: {names}"
        )
    if seed:
        chosen = [_one_seed(chosen[0], seed)]
    return ComparedSide(f"{results}: {name}", chosen[:1], matrix.left_out, results)


def _one_seed(arm: Arm, seed: str) -> Arm:
    runs = tuple(run for run in arm.runs if str(run.seed) == seed)
    if not runs:
        seeds = seeds_of(arm.runs)
        raise ValueError(f"{arm.label} has no seed {seed}; it has {seeds}")
    return dataclasses.replace(arm, runs=runs)


def side_by_side(
    a: ComparedSide, b: ComparedSide, rules: Rules | None = None
) -> SideBySide:
    """Match arms: two single arms with each other, arms of matrices by step and name.

    Raises ValueError if a run is on both sides: without noise between them, a verdict
    would have no meaning.
    """
    if both := a.folders & b.folders:
        raise ValueError(f"{min(both)} is on both sides: name different runs")
    if len(a.arms) == len(b.arms) == 1:
        matched = [(a.arms[0], b.arms[0])]
    else:
        others = {(arm.step, arm.name): arm for arm in b.arms}
        keys = [(arm, others.get((arm.step, arm.name))) for arm in a.arms]
        matched = [(arm, other) for arm, other in keys if other is not None]
    graded = compare([(y, x, "") for x, y in matched], rules or Rules())
    pairs = [_pair(x, y, c) for (x, y), c in zip(matched, graded, strict=True)]
    mine, theirs = {id(x) for x, _ in matched}, {id(y) for _, y in matched}
    return SideBySide(
        pairs,
        [arm for arm in a.arms if id(arm) not in mine],
        [arm for arm in b.arms if id(arm) not in theirs],
    )


def _pair(a: Arm, b: Arm, comparison: Comparison) -> MatchedArms:
    first, second = a.runs[0], b.runs[0]
    environment = [
        (name, _recorded(a, read), _recorded(b, read))
        for name, read in ENVIRONMENT.items()
    ]
    results = [(name, a.mean(name), b.mean(name)) for name in NUMBERS]
    return MatchedArms(
        a,
        b,
        comparison,
        config_changes(first.settings, second.settings),
        [row for row in environment if row[1] != row[2]],
        [row for row in results if row[1] is not None or row[2] is not None],
    )


def _recorded(arm: Arm, read: Callable[[Run], str | None]) -> str:
    """An item of the checklist, as recorded by the runs of an arm."""
    values = dict.fromkeys(read(run) for run in arm.runs)
    return "; ".join(x for x in values if x) or human.NONE


def shared_changes(pairs: list[MatchedArms]) -> list[Change]:
    """Settings with the same difference in every pair."""
    if not pairs:
        return []
    rest = [{_key(change) for change in pair.settings} for pair in pairs[1:]]
    return [c for c in pairs[0].settings if all(_key(c) in keys for keys in rest)]


def own_changes(pair: MatchedArms, shared: list[Change]) -> list[Change]:
    """Differing settings of a pair that are not in ``shared``."""
    known = {_key(change) for change in shared}
    return [change for change in pair.settings if _key(change) not in known]


def _key(change: Change) -> tuple[str, str, str]:
    name, old, new = change
    return name, repr(old), repr(new)
