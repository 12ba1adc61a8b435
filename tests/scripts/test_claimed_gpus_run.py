"""Two GPUs that are only claimed, one of them broken: runs train on the CPU."""

from __future__ import annotations

import io
import re
import shutil
import sys
from pathlib import Path

import pytest

from gpt2.plan.planning import make_plan
from gpt2.run import estimate, sharing_trial
from gpt2.run.runner import make_estimate
from lib.jobs.live_table import PlainView
from lib.jobs.options import Options
from lib.jobs.slots import Gpus, gpu_sets
from tests.scripts.test_run_test_matrix import attempts, look, summary
from tests.tinymatrix import SCRIPT, TINY, run_command, run_matrix, write_config

WORDS = ("--overrides", "DEVICE=auto STEPS=0,2,5 SEEDS=1,2,3")


@pytest.mark.slow
def test_the_other_gpu_does_all_and_every_table_says_so(
    folder: Path, claimed: dict[str, str]
) -> None:
    done = run_matrix(folder, *WORDS, **claimed, KABLATE_TEST_BROKEN_GPU="1")
    said = done.stdout + done.stderr
    assert done.returncode == 8, said
    assert "9 jobs on GPU 0, 1, 2 at a time" in said
    assert "FAILED (device): RuntimeError: CUDA error: unspecified launch" in said
    assert "GPU 1 IS OUT OF USE" in said and "9 of 9 jobs are done" in said
    assert "to continue" not in said and "leave it out by GPUS" in said
    runs = summary(folder)
    assert {run["status"] for run in runs.values()} == {"done"}
    assert sum(attempts(folder, run) for run in runs) <= 9 + 3 * 2
    for run in runs:
        log = (folder / "results" / run / "train.log").read_text()
        assert "CUDA error" not in log
    shown = look(folder, "--status", *WORDS).stdout
    assert "OUT OF USE since" in shown and "launch failure" in shown
    report = [sys.executable, str(SCRIPT.with_name("report.py")), "results"]
    assert "OUT OF USE since" in run_command(folder, report).stdout
    for name in ("REPORT.md", "report.html"):
        assert "OUT OF USE since" in (folder / "results" / name).read_text()


@pytest.mark.slow
def test_a_trial_on_a_claimed_gpu(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With real runs, which train on the CPU: the number is not looked at."""
    monkeypatch.setattr(sharing_trial, "SECONDS", 1.0)
    monkeypatch.setattr(sharing_trial, "OVERLAP", 0.01)
    monkeypatch.setenv("KABLATE_TEST_BROKEN_GPU", "none")
    folder = shutil.copytree(prepared, tmp_path / "here")
    monkeypatch.chdir(folder)
    text = TINY.replace('"cpu"', '"auto"') + "CONFIG_JOBS_PER_GPU=2\n"
    plan = make_plan(write_config(folder, text))
    out = io.StringIO()
    found = make_estimate(
        plan, {}, Options(slots=gpu_sets(Gpus("cuda", ("0", "1")), 1)), PlainView(out)
    )
    assert re.search(
        r"2 runs of step00-baseline .* make \d\.\d\d times", found["sharing"]
    )
    assert "trial20/step00-baseline/seed1: done" in out.getvalue()
    assert found["sharing"] in estimate.render(found)
    assert [p.name for p in plan.output_dir.iterdir() if p.is_dir()] == []
