"""Runs that a name refers to: a folder, a glob, or a step of the configured results.

Torch-free.
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from gpt2.plan.axes import split_names
from gpt2.plan.names import MATRIX_FILE
from gpt2.report.arms import group_arms
from gpt2.report.read_results import RUN_FIRST, read_matrix
from gpt2.report.results import LeftOutRun, Run
from gpt2.settings.configuration import results_of
from gpt2.settings.rerun_commands import report_command, show_next
from lib.atomic_files import DiskFull


@dataclass(slots=True)
class Chosen:
    """Runs that are done, others with their status, folders without a readable run."""

    done: list[Path] = field(default_factory=list)
    others: list[tuple[Path, str]] = field(default_factory=list)
    left_out: list[LeftOutRun] = field(default_factory=list)

    def add(self, root: Path, runs: list[Run]) -> None:
        """Add each run on disk once."""
        for run in runs:
            path = root / run.run_dir
            if path in self.done or not run.on_disk:
                continue
            if run.row["status"] == "done":
                self.done.append(path)
            else:
                self.others.append((path, str(run.row["status"])))

    def join(self, other: Chosen) -> None:
        """Add what ``other`` has, each once."""
        for name in ("done", "others", "left_out"):
            mine = getattr(self, name)
            mine += [item for item in getattr(other, name) if item not in mine]


def split_run(run: str, variable: str = "RUN") -> list[str]:
    """RUN split at commas, unless it is a folder as it stands; ValueError for a value
    that names nothing."""
    if not run or Path(run).is_dir():
        return [run]
    if names := split_names(run):
        return names
    raise ValueError(f"{variable}={run!r} names no run: leave it out for all runs")


def choose_runs(name: str, results: Path | None, variable: str = "RUN") -> Chosen:
    """Find the runs that a name refers to.

    name: a folder of one run or of many, a glob of folders (from here, or within the
    results), or within the results a step or name with or without a seed, for example
    "5", "ra" or "5:1337"; empty for all results. variable: that the user gave it by.
    Raises ValueError, which lists what exists, if there are none.
    """
    if not name:
        if results is None:
            raise ValueError(
                f"name a run or a results folder, {variable}=folder or "
                "RESULTS=folder, or load a preset with `make defconfig-NAME`"
            )
        return _below([results])
    places = [Path(name)] if results is None else [Path(name), results / name]
    for folder in places:
        if folder.is_dir():
            return _below([folder])
    if glob.has_magic(name):
        return _below(_matching(name, results, variable))
    if results is None or not results.is_dir():
        where = "" if results is None else f": {results} is not a folder"
        raise ValueError(
            f"{variable}={name!r} is not a folder, and there are no results to look it "
            f"up in{where}"
        )
    return _named(name, results, variable)


def _matching(pattern: str, results: Path | None, variable: str) -> list[Path]:
    """Folders that match a glob, relative to here or else to the results."""
    places = [""] if results is None else ["", str(results)]
    for place in places:
        found = sorted(glob.glob(str(Path(place) / pattern), recursive=True))
        if folders := [Path(path) for path in found if Path(path).is_dir()]:
            return folders
    raise ValueError(f"{variable}={pattern!r} matches no folder")


def _below(folders: list[Path]) -> Chosen:
    """All runs below some folders."""
    chosen = Chosen()
    for folder in folders:
        matrix = read_matrix(folder, curves=False)
        chosen.add(folder, matrix.runs)
        chosen.left_out += matrix.left_out
    if not chosen.done and not chosen.others:
        names = ", ".join(str(folder) for folder in folders[:3])
        raise ValueError(f"no runs in {names}: {RUN_FIRST}")
    return chosen


def _named(name: str, results: Path, variable: str) -> Chosen:
    """Runs of a step or cell of the results, by number, name or both."""
    which, colon, seed = name.partition(":")
    if colon and not seed:
        raise ValueError(
            f"{variable}={name!r} has no seed after the colon: {which} alone is every "
            "seed"
        )
    matrix = read_matrix(results, curves=False)
    arms = group_arms(matrix)
    named = [arm for arm in arms if arm.is_called(which)]
    every = [run for arm in named for run in arm.runs]
    runs = [run for run in every if not seed or str(run.seed) == seed]
    if named and not runs:
        seeds = ", ".join(dict.fromkeys(str(run.seed) for run in every))
        raise ValueError(
            f"{variable}={name!r}: {named[0].label} has no run with seed {seed} in "
            f"{results}, but with {seeds}"
        )
    if not runs:
        known = ", ".join(arm.label for arm in arms) or "nothing"
        raise ValueError(
            f"{variable}={name!r} is neither a folder nor a run of {results}: it has "
            f"{known}"
        )
    chosen = Chosen(left_out=matrix.left_out)
    chosen.add(results, runs)
    if not chosen.done and not chosen.others:
        raise ValueError(f"{variable}={name!r} was not begun in {results}: {RUN_FIRST}")
    return chosen


def results_folders(folders: Iterable[Path], config: Path) -> dict[Path, bool]:
    """Results folders that some folders are in or are themselves, and whether each is
    the configured one; a folder outside of any counts by itself."""
    configured = results_of(config)
    home = None if configured is None else configured.resolve()
    found: dict[Path, bool] = {}
    for folder in folders:
        places = [folder, *folder.parents]
        known = (
            place
            for place in places
            if place.resolve() == home or (place / MATRIX_FILE).is_file()
        )
        place = next(known, folder)
        found[place] = place.resolve() == home
    return found


def keep_for_report(command: str, write: Callable[[], object]) -> bool:
    """Write what a command has found next to a run, or print why that is not possible;
    whether it is written. Raises DiskFull."""
    try:
        write()
    except DiskFull:
        raise
    except OSError as error:
        print(f"{command}: not kept for the report: {error}", file=sys.stderr)
        return False
    return True


def show_next_report(runs: Iterable[Path], config: Path, why: str) -> None:
    """Show the command that reports on the results of some runs."""
    for folder, is_configured in results_folders(runs, config).items():
        show_next(report_command(folder, configured=is_configured), why)
