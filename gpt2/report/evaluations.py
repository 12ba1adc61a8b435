"""Results of `make eval` next to a run: eval.json, a number per item and measure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.atomic_files import atomic_write_json
from lib.jobs.run_files import now
from lib.safe_json import Unusable, as_dict, clean, number, read_foreign_json, text

EVAL_FILE = "eval.json"
SCHEMA = 1
MAX_MEASURES = 64
PREFIX = "eval: "  # of a measure's column in summary.json and results.csv


@dataclass(frozen=True, slots=True)
class Measure:
    """A number per item; ``of``: identity of the items, which alone can be compared
    one by one with those of another model."""

    items: tuple[float, ...]
    of: str

    @property
    def mean(self) -> float:
        return math.fsum(self.items) / len(self.items)


def write_evaluation(
    run_dir: Path, run_hash: str, found: Mapping[str, Measure], harness: Mapping
) -> None:
    """Write eval.json, atomically; measures of earlier evaluations of the run stay.

    harness: results of lm-evaluation-harness as it reports them, by task. Raises
    lib.atomic_files.DiskFull and OSError.
    """
    path = run_dir / EVAL_FILE
    try:
        before = as_dict(read_foreign_json(path)) if path.exists() else {}
    except Unusable:
        before = {}
    if not _is_of(before, run_hash):
        before = {}
    measures = {
        name: {"mean": one.mean, "of": one.of, "items": list(one.items)}
        for name, one in found.items()
    }
    record = {
        "schema": SCHEMA,
        "hash": run_hash,
        "written": now(),
        "measures": {**as_dict(before.get("measures")), **measures},
        "harness": {**as_dict(before.get("harness")), **harness},
    }
    atomic_write_json(path, record, make_folder=False)


def read_evaluation(found: Any, run_hash: str | None) -> dict[str, Measure]:
    """Measures in the content of an eval.json, without unusable ones.

    Raises Unusable if it is of another run or another version.
    """
    if not _is_of(as_dict(found), run_hash):
        raise Unusable("is of another run (its hash differs), or another version")
    measures: dict[str, Measure] = {}
    for name, one in as_dict(found["measures"]).items():
        items, of = as_dict(one).get("items"), text(as_dict(one).get("of"))
        numbers = [number(x) for x in items] if isinstance(items, list) else []
        values = tuple(float(x) for x in numbers if x is not None)
        usable = values and len(values) == len(numbers) and of is not None
        if usable and len(measures) < MAX_MEASURES:
            measures[clean(name)] = Measure(values, str(of))
    return measures


def named_by_items(
    measured: Sequence[Mapping[str, Measure]],
) -> list[dict[str, Measure]]:
    """The measures of several runs, by names that stand for the same items in each.

    Runs may have been scored at different times, and a name stays when its text or the
    number of items has changed; the items are then part of it.
    """
    items: dict[str, set[str]] = {}
    for measures in measured:
        for name, one in measures.items():
            items.setdefault(name, set()).add(one.of)
    return [
        {
            name if len(items[name]) == 1 else f"{name}, items {one.of[:8]}": one
            for name, one in measures.items()
        }
        for measures in measured
    ]


def _is_of(record: dict[str, Any], run_hash: str | None) -> bool:
    known = record.get("schema") == SCHEMA and isinstance(record.get("measures"), dict)
    return known and record.get("hash") == run_hash
