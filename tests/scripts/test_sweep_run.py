"""A sweep of tiny models, killed and continued, and its report."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from lib.jobs import run_files
from tests.scratch import until
from tests.scripts.inprocess import run_script
from tests.tinymatrix import TINY, command, run_matrix, write_config

SWEEP = "RA_WINDOW=2,4 RA_ALPHA=1,3"
SHORT = "SEEDS=1 JOBS=2 MAX_ITERS=4 EVAL_INTERVAL=2 WARMUP_STEPS=1 LR=0.05"
CELLS = [
    "step00-baseline/seed1",
    *(
        f"step05-ra/ra_window={window},ra_alpha={alpha}/seed1"
        for window in (2, 4)
        for alpha in (1.0, 3.0)
    ),
]


def done_in(results: Path) -> list[str]:
    # Path.rglob fails at a folder that is renamed meanwhile, as a checkpoint is.
    found = [
        Path(place)
        for place, _, names in os.walk(results)
        if run_files.STATUS_FILE in names
    ]
    return [
        place.relative_to(results).as_posix()
        for place in found
        if run_files.read_status(place)["status"] == "done"
    ]


@pytest.fixture
def swept(folder: Path) -> Path:
    write_config(folder, TINY + f'CONFIG_SWEEP="{SWEEP}"\n')
    return folder


def test_a_sweep_is_run_killed_continued_and_reported(swept: Path) -> None:
    results = swept / "results"
    one = "step05-ra/ra_window=4,ra_alpha=1.0"
    first = run_matrix(swept, "--overrides", SHORT, f"--only={one}")
    assert first.returncode == 0, first.stderr
    assert done_in(results) == [f"{one}/seed1"]

    runner = subprocess.Popen(
        command("--overrides", SHORT),
        cwd=swept,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: len(done_in(results)) > 1)
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    last = run_matrix(swept, "--overrides", SHORT)
    assert last.returncode == 0, last.stderr
    assert "5 of 5 jobs are done" in last.stdout
    assert sorted(done_in(results)) == CELLS
    attempts = [run_files.read_status(results / cell)["attempt"] for cell in CELLS]
    assert attempts[CELLS.index(f"{one}/seed1")] == 1  # nothing is trained twice

    status = run_script(
        "run_test_matrix.py", "--status", "--overrides", SHORT, cwd=swept
    )
    assert all(cell in status.stdout for cell in CELLS)
    assert run_script("report.py", "results", cwd=swept).returncode == 0
    rows = {
        row["run_dir"]: row for row in csv.DictReader((results / "results.csv").open())
    }
    assert [*rows] == CELLS
    assert rows[CELLS[2]]["ra_window"] == "2" and rows[CELLS[2]]["ra_alpha"] == "3.0"
    assert rows[CELLS[0]]["ra_window"] == ""
    losses = {row["val_loss"] for row in rows.values()}
    assert len(losses) == len(CELLS)  # the values act
    summary = json.loads((results / "summary.json").read_text())
    compared = {
        c["name"]: c["partner"]["name"] for c in summary["verdicts"]["comparisons"]
    }
    names = [cell.split("-", 1)[1].removesuffix("/seed1") for cell in CELLS[1:]]
    assert compared == dict.fromkeys(names, "baseline")
    assert "are one family of 4: every p" in " ".join(
        (results / "REPORT.md").read_text().split()
    )
