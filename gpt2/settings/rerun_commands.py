"""Commands to show to the user, including the settings of the current command.

After `make OUTPUT_DIR=x STEPS=5`, a plain `make` would continue in another folder.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

# Exported by the Makefile, quoted for a shell: the settings and the selected jobs.
SETTINGS, JOBS = "KABLATE_SETTINGS", "KABLATE_JOBS"
# Names of the variables that the targets of this make read; settings are apart.
VARIABLES = "KABLATE_VARIABLES"
RUNNER = "run_test_matrix.py"
# Options of matrix scripts that select an action, not jobs.
_MODES = (
    "--list",
    "--dry-run",
    "--estimate",
    "--budget",
    "--status",
    "--stop",
    "--rerun",
)
_WITH_VALUE = ("--sbatch",)


def make_variables() -> list[str]:
    """Variables that the current make command reads; [] for a script without make."""
    return os.environ.get(VARIABLES, "").split()


def matrix_command(target: str = "", only: Sequence[str] = ()) -> str:
    """Command for ``target`` with the settings and jobs of the current command.

    target: of the Makefile, or, as an option, of scripts/run_test_matrix.py; empty to
    run missing jobs. only: run directories to which it is limited. A script that was
    started without make is repeated without it.
    """
    script = Path(sys.argv[0])
    pattern = ",".join(run.replace(",", "?") for run in only)  # a comma separates
    if SETTINGS not in os.environ and script.name in (RUNNER, "print_sbatch.py"):
        words = [sys.executable, str(script.with_name(RUNNER)), *_same_jobs()]
        words += [f"--only={pattern}"] if only else []  # the last one counts
        return shlex.join([*words, *([f"--{target}"] if target else [])])
    given = shlex.split(f"{os.environ.get(SETTINGS, '')} {os.environ.get(JOBS, '')}")
    if only:
        given = [word for word in given if not word.startswith("ONLY=")]
        given.append(f"ONLY={pattern}")
    return " ".join(["make", *([target] if target else []), *assignments(given)])


def report_command(results: Path, *, configured: bool) -> str:
    """Command that reports on a folder; ``configured``: it is the one of config.py."""
    if SETTINGS not in os.environ:
        script = Path(sys.argv[0]).with_name("report.py")
        return shlex.join([sys.executable, str(script), str(results)])
    return make_command("report", [] if configured else [f"RESULTS={results}"])


def make_command(target: str, words: Iterable[str]) -> str:
    """Command for a target with the NAME=VALUE words that have a value."""
    given = [word for word in words if not word.endswith("=")]
    return " ".join([f"make {target}", *assignments(given)])


def show_next(command: str, why: str = "", file: TextIO | None = None) -> None:
    """Print the command that usually comes next; a command ends with this line."""
    more = f" ({why})" if why else ""
    print(f"Next: {command}{more}", file=file or sys.stdout, flush=True)


def assignments(words: Iterable[str]) -> list[str]:
    """NAME=VALUE words, quoted for a shell."""
    parts = (word.partition("=") for word in words)
    return [f"{name}{equals}{shlex.quote(value)}" for name, equals, value in parts]


def _same_jobs() -> list[str]:
    """Options of this process without those that select an action."""
    kept: list[str] = []
    words = iter(sys.argv[1:])
    for word in words:
        if word in _WITH_VALUE:
            next(words, None)
        elif word not in _MODES and word.partition("=")[0] not in _WITH_VALUE:
            kept.append(word)
    return kept
