"""scripts/print_sbatch.py: its script is run by bash as Slurm would run each task."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lib import atomic_files
from lib.jobs import run_files
from tests.gpt2.tinydata import prepare_texts
from tests.scratch import ROOT, write
from tests.scripts.inprocess import run_script
from tests.tinymatrix import TINY, run_matrix, write_config

SCRIPT = ROOT / "scripts" / "print_sbatch.py"


def print_sbatch(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def run_task(folder: Path, script: str, task: int, **environ: str) -> int:
    """As one task of the array, started in `folder`; `scontrol` notes what it is
    asked for."""
    tool = write(folder, "bin/scontrol", '#!/bin/sh\necho "$@" >> requeued\n')
    tool.chmod(0o755)
    slurm = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_JOB_ID": "7"}
    path = f"{tool.parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env={**os.environ, **slurm, "PATH": path, "OMP_NUM_THREADS": "1", **environ},
        capture_output=True,
        timeout=600,
    ).returncode


def test_each_task_trains_its_run(tmp_path: Path, monkeypatch) -> None:
    project, home = tmp_path / "é it's", tmp_path / "home"
    for folder in (project, home):
        folder.mkdir()
    monkeypatch.chdir(project)
    prepare_texts(Path("."))
    write_config(project)
    asked = ("--partition gpu", "--gres=gpu:1", "-Hx node1", "-n4", "--exclusive")
    words = ("--overrides", "SEEDS=1 JOBS=3", f"--sbatch={' '.join(asked)}")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")  # the script's paths stay whole
    done = print_sbatch(project, "--skip-verify", *words)
    assert done.returncode == 0, done.stderr
    for line in ("--array=0-1%3", *asked, "--requeue"):
        assert f"#SBATCH {line}\n" in done.stdout
    run = project / "results" / "step05-ra" / "seed1"
    assert run_task(home, done.stdout, 1) == 0
    assert run_files.read_status(run)["status"] == "done"
    assert atomic_files.read_json(run / "manifest.json")["verified"] == "skipped"
    assert not (project / "requeued").exists()

    again = print_sbatch(project, "--skip-verify", *words)  # what is left
    assert "--array=0-0%3" in again.stdout and "step05" not in again.stdout
    shown = run_matrix(project, "--status")
    assert "step05-ra/seed1" in shown.stdout and "done" in shown.stdout


@pytest.mark.parametrize("name", ["half 50%j", "new\nline"])
def test_the_folder_of_the_logs_is_named_or_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    write_config(folder)
    done = print_sbatch(folder, "--skip-verify", "--only", "*\n,*seed1")
    if "\n" in name:
        assert done.returncode == 2 and "does not fit on a line" in done.stderr
        return
    # %j would be the number of the job
    assert f"#SBATCH --output='{tmp_path}/half 50%%j/results'/slurm-" in done.stdout
    assert "\n,*seed1" not in done.stdout and "what is missing" not in done.stdout


def test_what_is_submitted_was_proven(tmp_path: Path) -> None:
    write_config(tmp_path, f'{TINY}CONFIG_GPUS="1"\n')
    asked = "SEEDS=1 STEPS=0 RA_WINDOW=4 TF32=n NUM_WORKERS=99 DEVICE=auto"
    done = print_sbatch(tmp_path, "--overrides", asked)
    assert "All certificates passed (1 step, 1 optimizer)" in done.stderr
    assert re.search("^note: .*make data.*if the runs are to read it", done.stderr)
    assert "note: RA_MLA_RA_WINDOW=4 (command line) has no effect" in done.stderr
    assert re.search("note: GPUS=1 \\(.*preset.*\\) has no effect in an", done.stderr)
    assert not re.search("TF32|NUM_WORKERS", done.stderr), "of the machine of a task"
    assert done.stdout.startswith("#!/bin/bash\n")
    assert "export KABLATE_VERIFIED=passed\n" in done.stdout


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("--array=0-3", "--array is set by the script (STEPS, SEEDS and ONLY"),
        ("--mem=4G -a 0-3", "`sbatch -a 0-3 runs.sh` overrules it"),
        ("-a0-3", "--array is set"),
        ("-Ha0-3", "--array is set"),
        ("-x", "-x needs a value"),
        ("-p --mem=4G", "-p needs a value"),
        ("-y", "sbatch has no option -y"),
        ("-H gpu", "'gpu' is not an option"),
        ("-", "'-' is not of the form --name=value"),
        ("-- gpu", "'--' is not of the form"),
        ("--=4G", "'--=4G' is not of the form"),
        ("--sig=USR1", "--signal is set"),
        ("-J mine", "--job-name is set by the script (it is the name of OUTPUT_DIR)"),
        ("--no-requeue", "goes on in the same task"),
        ("gpu", "'gpu' is not an option"),
        ("--mem 4G 8G", "'8G' is not an option"),
        ("'--comment=a\nrm -r x'", "does not fit on a line"),
        ("--comment='a", "No closing quotation"),
    ],
)
def test_options_that_are_not_the_users_are_refused(
    tmp_path: Path, asked: str, says: str
) -> None:
    write_config(tmp_path)
    done = run_script(SCRIPT.name, f"--sbatch={asked}", cwd=tmp_path)
    assert done.returncode == 2 and "SBATCH=" in done.stderr
    assert says in done.stderr and not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("LR_SCHEDULE=wsd STABLE_FROM=older", "STABLE_FROM=older: there is no older/"),
        ("TRACKER=wandb", "TRACKER: wandb is not installed"),
        ("ENGINE=ray", "RUN_ENGINE=ray has no effect in an array: Slurm starts"),
        ("GPUS=0,1", "GPUS=0,1 has no effect in an array: Slurm assigns GPUs"),
        ("HANG_TIMEOUT=60", "HANG_TIMEOUT=60 has no effect"),
    ],
)
def test_what_make_would_refuse_or_a_task_not_read_is_not_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, says: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    write_config(tmp_path)
    words = ("--skip-verify", "--overrides", asked)
    done = run_script(SCRIPT.name, *words, cwd=tmp_path)
    assert done.returncode == 2 and says in done.stderr
    assert not (tmp_path / "results").exists()


def test_a_finished_matrix_or_a_wrong_setting_is_told(tmp_path: Path) -> None:
    write_config(tmp_path)
    done = print_sbatch(tmp_path, "--only", "nothing")
    assert done.returncode == 2 and "matches no job" in done.stderr
    assert not (tmp_path / "results").exists()
