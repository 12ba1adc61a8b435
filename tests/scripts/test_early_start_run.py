"""Runs that prepare on claimed GPUs while their steps are still being verified."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lib import atomic_files
from lib.jobs import linux_processes, run_files
from tests.scratch import copy_files, until
from tests.scripts.test_prepare_ahead_run import times
from tests.scripts.test_run_test_matrix import PRODUCT, assert_equal_to, attempts
from tests.tinymatrix import SCRIPT, prove_and_run

RUNS = ("step00-baseline/seed1", "step05-ra/seed1")
SHARED = "DEVICE=auto SEEDS=1 PREPARE_AHEAD=1"  # turns in each slot
ALONE = "DEVICE=auto SEEDS=1 PREPARE_AHEAD=0"
STEPS_FAIL = ("Transposed(k, q, alpha", "Transposed(k, q, 0.0 * alpha")
PLACE = "KABLATE_TEST_PLACE"


@pytest.fixture
def environ(claimed: dict[str, str], folder: Path) -> dict[str, str]:
    """Two claimed GPUs, and certificates that wait for ``folder``/checked."""
    waits = {"KABLATE_TEST_CERTIFICATES": str(folder / "checked"), PLACE: str(folder)}
    return {**claimed, **waits, "KABLATE_TEST_BROKEN_GPU": "none"}


@contextmanager
def prepared_runs(
    folder: Path,
    environ: dict[str, str],
    overrides: str,
    script: Path = SCRIPT,
    phase: str = "ready",
) -> Iterator[subprocess.Popen[str]]:
    """A runner with both runs at this phase, and no certificate checked yet."""
    runner = subprocess.Popen(
        [sys.executable, str(script), "--no-table", "--overrides", overrides],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        until(lambda: all(phase in times(folder, run) for run in RUNS))
        yield runner
    finally:
        runner.kill()


def nothing_trained(folder: Path) -> bool:
    found = [times(folder, run) for run in RUNS]
    return not any({"turn", "first_update"} & phases.keys() for phases in found)


def test_no_run_trains_before_all_certificates_have_passed(
    undisturbed: Path, folder: Path, environ: dict[str, str]
) -> None:
    with prepared_runs(folder, environ, SHARED) as runner:
        assert nothing_trained(folder)
        checked = round(time.time(), 3)  # as in the records of phases
        (folder / "checked").touch()
        said, _ = runner.communicate()
    assert runner.returncode == 0, said
    for run in RUNS:
        found = times(folder, run)
        assert found["ready"] <= checked < found["turn"]
        assert attempts(folder, run) == 1
        manifest = folder / "results" / run / run_files.MANIFEST_FILE
        assert atomic_files.read_json(manifest)["verified"] == "passed"
        assert said.index("All certificates passed") < said.index(f"{run}: started")
    assert_equal_to(undisturbed, folder)
    assert not (folder / "results" / ".verified").exists()


def test_a_step_that_fails_leaves_no_trace_of_what_was_prepared(
    undisturbed: Path, folder: Path, tmp_path: Path, environ: dict[str, str]
) -> None:
    """RA that is without effect, planted in a copy of the sources."""
    tree = copy_files(tmp_path / "tree", PRODUCT)
    layer = tree / "gpt2" / "mechanisms" / "ra" / "layer.py"
    code = layer.read_text()
    assert STEPS_FAIL[0] in code
    layer.write_text(code.replace(*STEPS_FAIL))
    script = tree / "scripts" / SCRIPT.name
    # The run of step 5 finds the fault by itself, when it compares its gradients.
    with prepared_runs(folder, environ, ALONE, script, "model") as runner:
        (folder / "checked").touch()
        said, _ = runner.communicate()
    assert runner.returncode == 1, said
    good, wrong = RUNS
    assert f"{wrong}: NOT RUN (certificate): acting" in said
    assert f"{wrong}: started" not in said
    left = {path.name for path in (folder / "results" / wrong).iterdir()}
    assert left == {run_files.JOB_FILE, run_files.STATUS_FILE}
    status = run_files.read_status(folder / "results" / wrong)
    assert (status["failure"], status["attempt"]) == ("certificate", 0)
    assert times(folder, good)["started"] > (folder / "checked").stat().st_mtime
    assert attempts(folder, good) == 1
    assert_equal_to(undisturbed, folder, [good])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ctrl-c", "stop"])
def test_a_stop_during_the_certificates_leaves_nothing(
    folder: Path, environ: dict[str, str], how: str
) -> None:
    with prepared_runs(folder, environ, ALONE) as runner:
        if how == "ctrl-c":
            os.killpg(runner.pid, signal.SIGINT)
        else:
            asked = prove_and_run(folder, "--stop", "--overrides", ALONE, **environ)
            assert f"asked pid {runner.pid}" in asked.stdout
        said, _ = runner.communicate()
    assert runner.returncode == 3, said
    assert "stopped before any job started" in said
    assert "seed1" not in said and "Traceback" not in said
    assert not list((folder / "results").glob("step*"))
    assert linux_processes.marked(PLACE, str(folder)) == []


@pytest.mark.slow
def test_a_runner_killed_during_the_certificates_lets_no_run_train(
    undisturbed: Path, folder: Path, environ: dict[str, str]
) -> None:
    with prepared_runs(folder, environ, SHARED) as runner:
        runner.kill()
        runner.communicate()
        until(lambda: not linux_processes.marked(PLACE, str(folder)))
    assert nothing_trained(folder)
    shown = prove_and_run(folder, "--status", "--overrides", SHARED, **environ).stdout
    assert shown.count("planned") == 2 and "interrupted" not in shown
    (folder / "checked").touch()
    again = prove_and_run(folder, "--overrides", SHARED, **environ)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "attempt 2" not in again.stdout
    assert not list((folder / "results").rglob(run_files.EARLY_FILE))
    assert_equal_to(undisturbed, folder)
