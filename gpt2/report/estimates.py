"""Accuracy of `make estimate`, from finished runs.

An error is actual / estimated - 1, so +10% means that it took longer.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from lib import human
from lib.safe_json import as_dict, number

MEASURES = {"time": "seconds", "memory": "peak_memory_bytes"}

Scores = dict[str, dict[str, Any]]


def score(estimate: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> Scores:
    """Errors of each measure over the finished runs, in the format of summary.json.

    estimate: contents of estimates.json (untrusted). Measures that were not estimated
    and runs with other settings are left out.
    """
    jobs, cells = _by(estimate.get("jobs"), "hash"), _by(estimate.get("cells"), "name")
    errors: dict[str, list[tuple[float, str]]] = {name: [] for name in MEASURES}
    for row in rows:
        if row["status"] != "done" or row["hash"] not in jobs:
            continue
        cell = cells.get(str(row["run_dir"]).rpartition("/")[0], {})
        for name, measure in MEASURES.items():
            expected, actual = number(cell.get(measure)), number(row[measure])
            if not expected or expected < 0 or actual is None:
                continue
            error = number(actual / expected - 1)
            if error is not None:
                errors[name].append((error, row["run_dir"]))
    return {name: _summary(found) for name, found in errors.items() if found}


def _by(records: Any, key: str) -> dict[str, dict[str, Any]]:
    found = records if isinstance(records, list) else []
    return {str(r[key]): r for r in map(as_dict, found) if r.get(key) is not None}


def _summary(found: list[tuple[float, str]]) -> dict[str, Any]:
    worst, run = max(found, key=lambda one: abs(one[0]))
    errors = sorted(error for error, _ in found)
    return {
        "runs": len(errors),
        "median": statistics.median(errors),
        "worst": worst,
        "worst_run": run,
        "errors": errors,
    }


def score_lines(scores: Scores) -> list[str]:
    """Errors in words, one sentence per measure."""
    return [
        f"Estimated {name} compared with actual, {one['runs']} runs: "
        f"median error {human.change(one['median'])}, largest "
        f"{human.change(one['worst'])} ({one['worst_run']})."
        for name, one in scores.items()
    ]
