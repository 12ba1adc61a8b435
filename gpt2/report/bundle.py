"""Files of a results folder in a bundle: all that a report reads, no weights."""

from __future__ import annotations

import re
from pathlib import Path

from gpt2.audit.stamp import AUDIT_FILE
from gpt2.plan.names import (
    ATTENTION_FILE,
    ATTENTION_PLOT,
    ESTIMATES_FILE,
    MATRIX_FILE,
    RUNNER_FILE,
    STEPS_COPY,
)
from gpt2.report.evaluations import EVAL_FILE
from gpt2.report.generation import INFERENCE_FILE
from gpt2.report.read_results import MERGED_FILE, RUN_FILES, RUN_FIRST, read_matrix
from gpt2.report.series import LEDGER_FILE
from lib.bundle import unpack_bundle, write_bundle
from lib.jobs.run_files import GPU_FILE, LOG_FILE, SAMPLES_FILE, STATUS_FILE

REPORT_FILES = ("REPORT.md", "results.csv", "summary.json")
OF_MATRIX = (
    *(*REPORT_FILES, "report.html", MATRIX_FILE, MERGED_FILE),
    *(ESTIMATES_FILE, RUNNER_FILE, STEPS_COPY, LEDGER_FILE),
)
OF_RUN = (
    *(*RUN_FILES, GPU_FILE, LOG_FILE, AUDIT_FILE, EVAL_FILE, SAMPLES_FILE),
    *(INFERENCE_FILE, ATTENTION_FILE, ATTENTION_PLOT),
)
SUFFIX = ".zip"


_MATRIX, _RUN = ("|".join(map(re.escape, names)) for names in (OF_MATRIX, OF_RUN))
_PART = r"[A-Za-z0-9_][\w.,=+-]{0,120}"
# Paths in a bundle: files of the matrix, plots, and files of runs up to three folders
# deep. No name of a folder begins with a dot.
ALLOWED = re.compile(rf"(?:{_MATRIX})|plots/{_PART}\.png|(?:{_PART}/){{1,3}}(?:{_RUN})")


def bundle_results(results: Path, path: Path) -> int:
    """Write the bundle of a results folder; its size in bytes.

    Raises ValueError if there is no run in the folder, or no report of its runs as
    they are.
    """
    matrix = read_matrix(results, curves=False)
    runs = [run.run_dir for run in matrix.runs if run.on_disk]
    if not runs:
        raise ValueError(f"no runs in {results}: {RUN_FIRST}")
    if why := _no_report(results, runs):
        raise ValueError(f"{results}: {why}; run `make report RESULTS={results}`")
    names = [*OF_MATRIX, *(f"{run}/{name}" for run in runs for name in OF_RUN)]
    names += [f"plots/{p.name}" for p in sorted((results / "plots").glob("*.png"))]
    present = [name for name in names if (results / name).is_file()]
    odd = [name for name in present if not ALLOWED.fullmatch(name)]
    if odd:
        raise ValueError(f"{odd[0]!r} has a name that no bundle takes: rename it")
    return write_bundle(path, results, present)


def _no_report(results: Path, runs: list[str]) -> str:
    """Why there is no report of the runs as they are; empty if there is one."""
    missing = [name for name in REPORT_FILES if not (results / name).is_file()]
    if missing:
        return f"there is no {', '.join(missing)}"
    made = (results / REPORT_FILES[0]).stat().st_mtime_ns
    statuses = ((run, results / run / STATUS_FILE) for run in runs)
    later = [r for r, p in statuses if p.is_file() and p.stat().st_mtime_ns > made]
    return f"{later[0]} has changed since its report" if later else ""


def results_folder(path: Path) -> Path:
    """The path itself or, of a bundle, the folder of its name without .zip, in which it
    is unpacked unless that was done before.

    Raises lib.bundle.BadBundle, ValueError and OSError.
    """
    if path.suffix != SUFFIX or not path.is_file():
        return path
    folder = path.with_suffix("")
    unpack_bundle(path, folder, ALLOWED)
    return folder
