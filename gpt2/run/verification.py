"""First stage of a run: verify the cells by their certificates, report failures.

Torch-free: scripts/verify.py does the work in another process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from lib.atomic_files import read_json
from lib.jobs.linux_processes import end_with
from lib.output import EXIT_DISK, EXIT_FAILED, EXIT_OK

VERIFY = Path(__file__).resolve().parents[2] / "scripts" / "verify.py"
PASSED, SKIPPED = "passed", "skipped"
POLL = 0.1  # seconds between checks of the stop file
GRACE = 1.0  # seconds to end in, once it is there


class Stopped(RuntimeError):
    """The runner was asked to stop while the steps were being verified."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """Outcome of the stage.

    failed: message by cell (a run directory without its seed). table: what
    scripts/verify.py wrote, None if it was not asked.
    """

    failed: Mapping[str, str] = field(default_factory=dict)
    table: Mapping[str, Any] | None = None

    @property
    def word(self) -> str:
        """The entry about verification in the manifest of a run."""
        return SKIPPED if self.table is None else PASSED

    def to_json(self) -> dict[str, Any]:
        failed = [{"cell": cell, "message": why} for cell, why in self.failed.items()]
        return {"failed": failed, "table": self.table}


def verify(
    config: Path,
    overrides: str,
    only: str,
    to: TextIO | None = None,
    stop_file: Path | None = None,
) -> Certificates:
    """Verify the configured cells; the table goes to a stream (default: stdout).

    stop_file: a file whose appearance asks for an end. Raises Stopped then, and
    RuntimeError if the certificates could not be run at all.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "certificates.json"
        words = ["--config", str(config), "--overrides", overrides]
        words += ["--at-hand", f"--only={only}"]
        command = [sys.executable, str(VERIFY), *words, "--out", str(out)]
        code = _carry_out(command, to, stop_file)
        # The file is complete before the process finds out that its table is lost.
        if code not in (EXIT_OK, EXIT_FAILED, EXIT_DISK) or not out.exists():
            raise RuntimeError(
                f"the steps could not be verified (exit code {code}, see above); "
                "SKIP_VERIFY=1 runs them unverified"
            )
        table = read_json(out)
    failed = {c["name"]: _message(c) for c in table["cells"] if not c["passed"]}
    return Certificates(failed=failed, table=table)


def _carry_out(
    command: Sequence[str], to: TextIO | None, stop_file: Path | None
) -> int:
    """The exit code of a command, which ends when this process does, however."""
    ours = os.getpid()
    # Or a Ctrl-C prints a traceback of the fork, or of the child's Python as it starts:
    # for the child the signal waits for begin().
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=to,
            preexec_fn=lambda: end_with(ours),  # the runner has one thread
        )
    except OSError:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        while stop_file is None or not stop_file.exists():
            with suppress(subprocess.TimeoutExpired):
                return process.wait(POLL)
        process.terminate()
        raise Stopped("asked to stop while the steps were being verified")
    finally:
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        process.kill()  # which does nothing to one that has ended
        process.wait()


def _message(cell: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{name}: {found['detail'] or found['figure']}"
        for name, found in cell["findings"].items()
        if not found["passed"]
    )
