"""A matrix on two claimed GPUs, one of them broken; its runs train on the CPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.scripts.test_run_test_matrix import attempts, look, summary
from tests.tinymatrix import SCRIPT, run_command, run_matrix

NVIDIA_SMI = """#!/bin/sh
case "$1" in
    -L) printf 'GPU 0: Claimed (UUID: x)\\nGPU 1: Claimed (UUID: y)\\n' ;;
    *) printf '80000\\n80000\\n' ;;
esac
"""
WORDS = ("--overrides", "DEVICE=auto STEPS=0,2,5 SEEDS=1,2,3")


@pytest.fixture
def claimed(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine that claims to have two GPUs."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(NVIDIA_SMI)
    (tools / "nvidia-smi").chmod(0o755)
    return {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}


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
