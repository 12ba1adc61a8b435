"""Check that summary.json and results.csv have the numbers that a run reported.

Torch-free.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt2.audit.evidence import RunFiles
from gpt2.audit.finding import (
    DIFFERS,
    NOT_CHECKED,
    AuditLine,
    Value,
    holds,
    not_checked,
)
from lib.safe_json import (
    MAX_JSON_BYTES,
    Unusable,
    as_dict,
    number,
    read_foreign_json,
    read_plain,
)

SUMMARY, TABLE = "summary.json", "results.csv"
REMEDY = "`make report` writes it from the runs"


def results_folder(evidence: RunFiles) -> Path | None:
    """Results folder of a run; None for a copy elsewhere, or without a summary."""
    here, place = evidence.run_dir.absolute(), Path(evidence.job.run_dir)
    depth = len(place.parts)
    if not depth or here.parts[-depth:] != place.parts or depth >= len(here.parts):
        return None
    root = here.parents[depth - 1]
    return root if (root / SUMMARY).is_file() else None


def table_findings(evidence: RunFiles) -> Iterator[AuditLine]:
    """Check both files of the results folder, number by number; [] without one."""
    root = results_folder(evidence)
    if root is None:
        return
    place = Path(evidence.job.run_dir).as_posix()
    for name, rows in ((SUMMARY, _summary), (TABLE, _table)):
        try:
            found = [row for row in rows(root / name) if row.get("run_dir") == place]
        except Unusable as error:
            state = NOT_CHECKED if str(error) == "missing" else DIFFERS
            yield AuditLine(name, state, reason=f"{error}; {REMEDY}")
            continue
        yield _row(evidence, name, found)


def _summary(path: Path) -> list[dict[str, Any]]:
    runs = as_dict(read_foreign_json(path)).get("runs")
    return [as_dict(row) for row in runs] if isinstance(runs, list) else []


def _table(path: Path) -> list[dict[str, Any]]:
    data = read_plain(path, MAX_JSON_BYTES)
    try:
        return list(csv.DictReader(io.StringIO(data.decode("utf-8"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise Unusable(f"not a table ({error})") from None


def _row(evidence: RunFiles, name: str, rows: list[dict[str, Any]]) -> AuditLine:
    """Compare the run's row with its result; a row from before its end is skipped."""
    done = [row for row in rows if row.get("status") == "done"]
    if not done:
        return not_checked(name, f"has no finished run of this name; {REMEDY}")
    numbers = {k: v for k, v in evidence.result.items() if number(v) is not None}
    for key, reported in numbers.items():
        shown = _as_number(done[0].get(key))
        if key in done[0] and shown != reported:
            reason = f"{key}: {REMEDY}"
            return AuditLine(name, DIFFERS, shown, reported, reason=reason)
    count = sum(key in done[0] for key in numbers)
    is_there = count > 0 and "val_loss" in done[0]
    return holds(name, is_there, f"{count} numbers", "those of the run's result")


def _as_number(cell: object) -> Value:
    """Cell as a number if it is one, else unchanged."""
    if isinstance(cell, str):
        try:
            return float(cell)
        except ValueError:
            return cell
    return number(cell)
