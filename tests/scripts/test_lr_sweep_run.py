"""LR_SWEEP by real processes: killed, extended, run again, by array tasks and Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from gpt2.plan.jobs import only
from gpt2.plan.planning import make_plan
from gpt2.settings.configuration import load
from lib.jobs import run_files
from tests.lib.jobs.test_ray_engine import needs_ray
from tests.scratch import until
from tests.scripts.inprocess import run_script
from tests.scripts.test_print_sbatch import print_sbatch, run_task
from tests.scripts.test_sweep_run import done_in
from tests.tinymatrix import command, run_matrix

pytestmark = pytest.mark.slow

# The best of these rates for so short a run is the largest, and 0.27 is too high.
RATES = "LR_SWEEP=0.01,0.03 LR_SWEEP_EXTEND=y LR_TUNING_SEEDS=7 MIN_LR_RATIO=0.1"
SHORT = f"STEPS=0 SEEDS=1 JOBS=2 MAX_ITERS=6 EVAL_INTERVAL=3 WARMUP_STEPS=1 {RATES}"
FIRST, ADDED = ("0.01", "0.03"), ("0.09", "0.27")


def cells(*rates: str) -> list[str]:
    return sorted(
        f"step00-baseline/learning_rate={rate}/seed{seed}"
        for rate in rates
        for seed in (1, 7)
    )


def test_it_is_killed_continued_extended_reported_and_run_again(folder: Path) -> None:
    results = folder / "results"
    runner = subprocess.Popen(
        command("--overrides", SHORT),
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    # in the middle of the rates that were added
    until(lambda: len(done_in(results)) > len(cells(*FIRST)))
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    last = run_matrix(folder, "--overrides", SHORT)
    assert last.returncode == 0, last.stderr
    assert sorted(done_in(results)) == cells(*FIRST, *ADDED)
    assert "LR_SWEEP_EXTEND=y adds LEARNING_RATE=0.27, since 0.09" in last.stdout
    assert "8 of 8 jobs are done" in last.stdout
    attempts = [
        run_files.read_status(results / cell)["attempt"] for cell in cells(*FIRST)
    ]
    assert set(attempts) == {1}  # nothing is trained twice

    report = run_script("report.py", "results", cwd=folder)
    assert report.returncode == 0, report.stderr
    assert "Best learning rates, by tuning seeds: 0 baseline 0.09." in report.stdout
    assert (results / "plots" / "rates.png").is_file()
    found = json.loads((results / "summary.json").read_text())["verdicts"]["own_best"]
    assert [(arm["best"], arm["edge"]) for arm in found["rates"]] == [(0.09, "")]

    again = run_matrix(folder, "--rerun", "--overrides", SHORT)
    assert again.returncode == 0, again.stderr
    assert "8 of 8 jobs are done" in again.stdout
    status = run_script(
        "run_test_matrix.py", "--status", "--overrides", SHORT, cwd=folder
    )
    assert all(cell in status.stdout for cell in cells(*FIRST, *ADDED))


def test_a_rate_that_diverges_is_an_end_and_is_tried_once(folder: Path) -> None:
    """At a rate of 10 this decay multiplies the weights by -99 in every update."""
    rates = "LR_SWEEP=0.1,10 LR_SWEEP_EXTEND=y LR_TUNING_SEEDS=7 WEIGHT_DECAY=10"
    words = SHORT.replace(RATES, f"{rates} MIN_LR_RATIO=1").replace(
        "ITERS=6", "ITERS=40"
    )
    done = run_matrix(folder, "--overrides", words)
    assert done.returncode == 1  # since runs failed
    results = folder / "results"
    for seed in (1, 7):
        run = results / "step00-baseline" / "learning_rate=10.0" / f"seed{seed}"
        status = run_files.read_status(run)
        assert (status["failure"], status["attempt"]) == ("nan", 1)
    assert "adds LEARNING_RATE=0.001, since 0.1 is the smallest rate" in done.stdout
    assert len(done_in(results)) >= len(cells("0.1", "0.001"))


def test_an_array_of_slurm_is_extended_by_the_next_one(folder: Path) -> None:
    words = ("--overrides", SHORT)
    for rates in (FIRST, ADDED[:1], ADDED[1:]):
        script = print_sbatch(folder, "--skip-verify", *words)
        assert script.returncode == 0, script.stderr
        assert f"--array=0-{2 * len(rates) - 1}%2" in script.stdout
        for task in range(2 * len(rates)):
            assert run_task(folder, script.stdout, task) == 0
    assert sorted(done_in(folder / "results")) == cells(*FIRST, *ADDED)
    plan = make_plan(load(folder / "config.py", f"{SHORT} OUTPUT_DIR={folder}/results"))
    assert len(only(plan, "*/seed7").jobs) == 4
    assert print_sbatch(folder, "--skip-verify", *words).returncode != 0  # all done


@needs_ray
def test_ray_extends_it_in_one_call(folder: Path) -> None:
    done = run_matrix(folder, "--overrides", f"{SHORT} ENGINE=ray RAY_ADDRESS=local")
    assert done.returncode == 0, done.stderr
    assert sorted(done_in(folder / "results")) == cells(*FIRST, *ADDED)
