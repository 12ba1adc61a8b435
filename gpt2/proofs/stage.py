"""The certificates as the first stage of a run: what was proven, what must not run.

Torch-free: scripts/verify.py does the work in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from lib.rundir import read_json

VERIFY = Path(__file__).resolve().parents[2] / "scripts" / "verify.py"
PASSED, SKIPPED = "passed", "skipped"


@dataclass(frozen=True, slots=True)
class Proofs:
    """Outcome of the stage.

    failed: message by cell (a run directory without its seed). table: what
    scripts/verify.py wrote, None if it was not asked.
    """

    failed: Mapping[str, str] = field(default_factory=dict)
    table: Mapping[str, Any] | None = None

    @property
    def word(self) -> str:
        """What a run that may go ahead notes in its manifest."""
        return SKIPPED if self.table is None else PASSED


def prove(config: Path, overrides: str, only: str, to: TextIO | None = None) -> Proofs:
    """Prove the cells at hand, the table going to a stream (default: stdout).

    Raises RuntimeError if the proof itself could not be carried out.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "certificates.json"
        words = ["--config", str(config), "--overrides", overrides]
        words += ["--at-hand", f"--only={only}"]
        command = [sys.executable, str(VERIFY), *words, "--json", str(out)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=to)
        code = done.returncode
        if code not in (0, 1) or not out.exists():
            raise RuntimeError(
                f"the steps could not be proven (exit code {code}, told above); "
                "SKIP_VERIFY=1 runs them unproven"
            )
        table = read_json(out)
    failed = {c["name"]: _message(c) for c in table["cells"] if not c["passed"]}
    return Proofs(failed=failed, table=table)


def _message(cell: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{name}: {found['detail'] or found['figure']}"
        for name, found in cell["findings"].items()
        if not found["passed"]
    )
