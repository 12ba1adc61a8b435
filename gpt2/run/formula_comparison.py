"""Comparison of each cell, as it trains, with the formulas: as read and as a table.

gpt2/train/as_trained.py makes it; its record is in the manifest of a run. Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lib import atomic_files
from lib.jobs import run_files


@dataclass(frozen=True, slots=True)
class FormulaComparison:
    """The first comparison with the formulas that a run made; message: why there is
    none."""

    cell: str
    record: Mapping[str, Any]
    paths: str
    message: str = ""

    @classmethod
    def of(cls, cell: str, run_dir: Path) -> FormulaComparison:
        status = run_files.read_status(run_dir)
        try:
            manifest = atomic_files.read_json(run_dir / run_files.MANIFEST_FILE)
        except (OSError, ValueError):
            manifest = {}
        checks = (manifest.get("as_trained") or {}).get("checks", [])
        names = ("attention_backend", "mlp_backend", "cuda_graph")
        paths = ", ".join(str(manifest[n]) for n in names if n in manifest)
        if not checks:
            why = f"{status['failure'] or status['status']}: {status['message']}"
            return cls(cell, {}, paths, why)
        return cls(cell, checks[-1], paths)

    @property
    def passed(self) -> bool:
        return bool(self.record.get("passed"))

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed}


def comparison_table(found: Sequence[FormulaComparison]) -> str:
    """One line for each cell: the largest deviation, what is allowed, and where."""
    width = max((len(one.cell) for one in found), default=0)
    lines = [
        f"{'step':<{width}} {'deviates':>9} {'allowed':>8} {'loss':>8}  where; kernels"
    ]
    for one in found:
        record = one.record
        if not record:
            lines.append(f"{one.cell:<{width}} FAILED: {one.message}")
            continue
        mark = "" if one.passed else "FAILED "
        numbers = f"{record['worst']:>9.1e} {record['tolerance']:>8.0e}"
        loss, where = f"{record['loss_deviation']:>8.1e}", record["parameter"]
        name = f"{one.cell:<{width}}"
        lines.append(f"{name} {numbers} {loss}  {mark}{where}; {one.paths}")
    passed = sum(one.passed for one in found)
    lines.append(f"{passed} of {len(found)} steps train as their formulas say")
    return "\n".join(lines) + "\n"
