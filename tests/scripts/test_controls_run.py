"""A matrix with its A/A control, and one that falls apart, really trained on a CPU."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lib import atomic_files
from tests.results_factory import change_final_loss
from tests.scripts.inprocess import run_script
from tests.tinymatrix import run_matrix

CONTROL = "step00-baseline-aa/seed1"
ON = ("--overrides", "SEEDS=1 CONTROLS=y")


def report(folder: Path) -> str:
    """Texts that `make report` prints, and writes into the results folder."""
    words = ("results", "--no-plots", "--no-html")
    done = run_script("report.py", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def read(folder: Path, run: str, name: str) -> dict:
    return dict(atomic_files.read_json(folder / "results" / run / name))


@pytest.fixture
def here(finished: Path) -> Path:
    """Steps 0 and 5, trained before there were controls."""
    results = finished / "results"
    for path in [*results.glob("*/*/job.json"), results / "matrix.json"]:
        found = json.loads(path.read_text())
        for job in found.get("jobs", [found]):
            del job["settings"]["resources"]["other_kernels"]
            del job["settings"]["matrix"]["controls"]
        path.write_text(json.dumps(found))
    return finished


def test_a_control_joins_an_old_matrix_and_is_shown_first(here: Path) -> None:
    before = read(here, "step05-ra/seed1", "status.json")
    done = run_matrix(here, *ON)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 jobs are done" in done.stdout and "ALARM" not in done.stdout
    assert "step05-ra/seed1: started" not in done.stdout  # the hash is what it was
    assert read(here, "step05-ra/seed1", "status.json") == before

    log = (here / "results" / CONTROL / "train.log").read_text()
    assert "A/A control: attention reference instead of sdpa" in log
    manifests = [
        read(here, run, "manifest.json") for run in ("step00-baseline/seed1", CONTROL)
    ]
    assert [m["attention_backend"] for m in manifests] == ["sdpa", "reference"]
    assert manifests[0]["hash"] != manifests[1]["hash"]

    said = report(here)
    assert said.startswith("A/A control: 0 baseline with other kernels ends ")
    assert "the numerical noise of this matrix" in " ".join(said.split())
    found = json.loads((here / "results" / "summary.json").read_text())["verdicts"]
    (control,) = found["controls"]
    assert control["grade"] == "EQUAL" and abs(control["mean"]) < 1e-4
    assert [c["name"] for c in found["comparisons"]] == ["ra"] and found["void"] == []
    rows = re.findall(r"^ *0 +(\S+ \S+)", said, re.MULTILINE)
    assert rows == ["A/A control:", "GPT-2 baseline"]

    plant(here, 0.05)
    said = " ".join(report(here).split())
    assert (
        "ALL VERDICTS OF THIS MATRIX ARE INVALID: the A/A control of 0 baseline" in said
    )
    status = run_script("run_test_matrix.py", "--status", *ON, cwd=here).stdout
    assert "ALARM 0 baseline-aa: the A/A control differs by −0.0500 nats" in status
    assert f"{CONTROL}  done" in status


def plant(folder: Path, shift: float) -> None:
    """Let the baseline end so much higher."""
    change_final_loss(folder / "results/step00-baseline/seed1", shift.__add__)


def test_every_command_copes_with_a_control(folder: Path) -> None:
    def look(script: str, *words: str) -> str:
        done = run_script(script, *words, *ON, cwd=folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = look("run_test_matrix.py", "--list")
    assert "2 steps and an A/A control x 1 seed = 3 jobs" in listed
    assert re.search(r"OTHER_KERNELS +n -> y +CONTROLS=y", listed)
    assert "note: step00-baseline-aa: 1 of 3 jobs, to measure numerical noise" in listed
    budget = look("run_test_matrix.py", "--budget")
    assert re.search(r"baseline-aa +\S+ +\+0.00% +\+0.00% +0 ", budget)
    alone = look("run_test_matrix.py", "--list", "--only", "*-aa")
    assert re.findall(r"results/(\S+)", alone) == [CONTROL]
    script = look("print_sbatch.py", "--skip-verify")
    assert "array=0-2" in script and CONTROL in script
    job = read(folder, CONTROL, "job.json")
    assert job["settings"]["resources"]["other_kernels"] is True

    without = run_script(
        "run_test_matrix.py", "--list", "--overrides", "CONTROLS=y STEPS=5", cwd=folder
    )
    why = "left out: A/A control: CONTROLS=y, but its baseline, step 0, is not among"
    assert why in without.stdout


def test_a_baseline_that_blows_up_at_once_is_told_and_spoils_the_matrix(
    folder: Path,
) -> None:
    """Within the first log window, so that no lower loss was ever recorded."""
    absurd = "SEEDS=1 LEARNING_RATE=10 GRAD_CLIP=0 GPT2_LOG_INTERVAL=10 MAX_ITERS=20"
    done = run_matrix(folder, "--overrides", absurd)
    assert done.returncode == 0, done.stdout + done.stderr
    began = (
        r"ALARM step00-baseline/seed1 at update \d+: "
        r"the \w* ?loss is \d+\.\d+, above ln"
    )
    assert re.search(began, done.stdout)
    assert "ALARM step00-baseline/seed1 ended at" in done.stdout
    said = " ".join(report(folder).split())
    assert (
        "ALL VERDICTS OF THIS MATRIX ARE INVALID: the baseline 0 baseline: seed 1"
        in said
    )
    text = (folder / "results" / "REPORT.md").read_text()
    assert re.search(r"- \[ \] alarms: \d", text)
    assert "INVALID" in text and "baseline**: seed 1 ended at" in text
