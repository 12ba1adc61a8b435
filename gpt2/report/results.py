"""Results of a matrix as data: runs, their rows, and what was left out."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2.report.estimates import Scores
from gpt2.report.evaluations import Measure
from gpt2.report.generation import Generation
from lib.safe_json import as_dict, clean, number

# Columns of a result, in the order of the tables.
NUMBERS = """val_loss val_perplexity val_accuracy best_val_loss train_loss bits_per_byte
parameters flops_per_token tokens tokens_per_s mfu peak_memory_bytes kv_bytes_per_token
seconds mean_epoch_seconds step_seconds optimizer_state_bytes sparsity zeros
as_trained""".split()
COLUMNS = (
    *"step name title parent seed status failure message".split(),
    *NUMBERS,
    *"updates max_updates effective_batch verified hash run_dir".split(),
)
EXTRA_COLUMN = re.compile(r"[a-z][a-z0-9_]{0,47}")
MAX_EXTRA_COLUMNS = 64

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LeftOutRun:
    """File or directory that was not used (path relative to the matrix)."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Run:
    """Run as found on disk; ``row`` has every name of COLUMNS."""

    row: Row
    job: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    evals: list[dict[str, float]] = field(default_factory=list)
    trains: list[dict[str, float]] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)
    evaluation: dict[str, Measure] = field(default_factory=dict)
    generation: Generation | None = None
    on_disk: bool = True

    @property
    def run_dir(self) -> str:
        return str(self.row["run_dir"])

    @property
    def seed(self) -> Any:
        """A whole number; None if it is only planned, by a damaged plan."""
        return self.row["seed"]

    @property
    def settings(self) -> dict[str, Any]:
        return as_dict(self.job.get("settings"))

    def part(self, name: str) -> dict[str, Any]:
        """Settings of one part, such as "model"; {} if they are unreadable."""
        return as_dict(self.settings.get(name))

    @property
    def is_control(self) -> bool:
        """True if it is of an A/A control."""
        return self.part("resources").get("other_kernels") is True

    @property
    def coordinates(self) -> dict[str, Any]:
        """Values of a sweep that the run was made at, by setting."""
        return coordinates_of(self.job)

    @property
    def is_tuning(self) -> bool:
        """True if it chooses a learning rate and is in no verdict."""
        return self.job.get("tuning") is True


@dataclass(slots=True)
class MatrixResults:
    """All runs of one results directory, in the order of the plan where known."""

    root: Path
    runs: list[Run] = field(default_factory=list)
    left_out: list[LeftOutRun] = field(default_factory=list)
    estimates: Scores = field(default_factory=dict)
    merged: list[str] = field(default_factory=list)  # notes of merged folders
    base: dict[str, Any] = field(default_factory=dict)  # settings as configured

    @property
    def rows(self) -> list[Row]:
        return [run.row for run in self.runs]

    def leave_out(self, path: str | Path, reason: str) -> None:
        """Record once a path, absolute or relative to the matrix, as not used."""
        path = Path(path)
        if path.is_absolute():
            path = path.relative_to(self.root)
        item = LeftOutRun(clean(path.as_posix()), clean(reason))
        if item not in self.left_out:
            self.left_out.append(item)


def seeds_of(runs: Iterable[Run]) -> str:
    """Seeds of some runs: "1, 2, 3"."""
    return ", ".join(str(run.seed) for run in runs)


def coordinates_of(job: dict) -> Row:
    """Coordinates in a job.json, without what cannot be a column."""
    return extra_columns(as_dict(job.get("coordinates")), COLUMNS)


def extra_columns(values: dict, known: Collection[str]) -> Row:
    """Plain values that are not among the known columns, by name."""
    found: Row = {}
    for name, value in values.items():
        wanted = isinstance(name, str) and EXTRA_COLUMN.fullmatch(name)
        if not wanted or name in known or len(found) >= MAX_EXTRA_COLUMNS:
            continue
        if isinstance(value, bool):
            found[name] = value
        elif isinstance(value, str):
            found[name] = clean(value)
        elif number(value) is not None:
            found[name] = value
    return found
