"""Runs with different settings and identical losses: the settings had no effect.

Only finished runs are compared: cells of a test matrix are identical until pruning
begins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from gpt2.report.arms import Arm, is_done
from gpt2.report.evidence import ACTING, curve_of
from gpt2.report.read_results import read_curves
from gpt2.report.results import MatrixResults, Run
from lib.alarms import identical_curves
from lib.atomic_files import finite
from lib.hashing import identity


def twins(runs: Iterable[Run]) -> list[tuple[Run, Run]]:
    """Pairs of finished runs of one seed with other settings and equal losses."""
    by_seed: dict[int | None, dict[str, Run]] = {}
    for run in filter(is_done, runs):  # one run for each distinct setting
        by_seed.setdefault(run.seed, {}).setdefault(_acting(run), run)
    found = []
    for group in by_seed.values():
        curves = {key: curve_of(run) for key, run in group.items()}
        found += [(group[a], group[b]) for a, b in identical_curves(curves)]
    return found


def _acting(run: Run) -> str:
    parts = {part: run.settings.get(part.rstrip(".")) for part in ACTING}
    return identity(finite(parts))


def twin_alarms(matrix: MatrixResults) -> dict[str, str]:
    """Alarms about identical runs, keyed by their folders.

    For a matrix that was read without curves, since reading all takes seconds: only
    the curves of runs with the same final loss are read here.
    """
    ends = Counter(map(_end, filter(is_done, matrix.runs)))
    alike = [run for run in matrix.runs if ends[_end(run)] > 1]
    for run in alike:
        read_curves(matrix, run)
    return {
        (both := f"{one.run_dir} and {other.run_dir}"): f"{both} have identical "
        "losses: do the settings in which they differ have an effect?"
        for one, other in twins(alike)
    }


def _end(run: Run) -> tuple[Any, Any]:
    return run.seed, run.row["val_loss"]


def twin_arms(arms: Sequence[Arm]) -> dict[tuple[str, str], list[Run]]:
    """Identical runs of two arms: those of the first one, by the labels of both."""
    labels = {run.run_dir: arm.label for arm in arms for run in arm.runs}
    found: dict[tuple[str, str], list[Run]] = {}
    for one, other in twins(run for arm in arms for run in arm.runs):
        pair = labels[one.run_dir], labels[other.run_dir]
        found.setdefault(pair, []).append(one)
    return found
