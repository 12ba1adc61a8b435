"""Jobs as tasks of the scheduler: the command of the trainer, its files, its cost.

Torch-free.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gpt2.plan.budget import budget
from gpt2.plan.jobs import Job, rounds
from gpt2.plan.names import VERIFIED
from gpt2.plan.run_length import last_update, seconds_of, tokens_of
from gpt2.settings.schema import Settings
from lib.files import safe_join
from lib.hashing import identity
from lib.jobs import run_files
from lib.jobs.process import Task

ROOT = Path(__file__).resolve().parents[2]
TRAINER = ROOT / "gpt2" / "train_ra_mla.py"
LAUNCHER = ROOT / "lib" / "jobs" / "launcher.py"


def task_of(job: Job, output_dir: Path, verified: str) -> Task:
    """The trainer's command for a job; its job.json is written when it starts.

    verified: state of its certificates, for its manifest.
    """
    run_dir = safe_join(output_dir, job.run_dir).absolute()
    job_file = run_dir / run_files.JOB_FILE
    words = ("--job", str(job_file), "--run-dir", str(run_dir))
    ranks = job.settings.resources.ddp_gpus_per_job
    launcher = () if ranks == 1 else (str(LAUNCHER), str(ranks))
    text = json.dumps(job.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    return Task(
        name=job.run_dir,
        command=(sys.executable, *launcher, str(TRAINER), *words),
        run_dir=run_dir,
        env={VERIFIED: verified},
        files={run_files.JOB_FILE: text + "\n"},
        seconds=seconds_of(job.settings.optim.time_budget),
        max_steps=last_update(job.settings),
        code=_code(job.settings),
        cost=float(budget(job.settings).flops_training * tokens_of(job.settings)),
    )


def tasks_of(jobs: Sequence[Job], output_dir: Path, verified: str) -> list[Task]:
    """As task_of, for each of the jobs, with their rounds."""
    number = {job.run_dir: n for n, found in enumerate(rounds(jobs)) for job in found}
    tasks = ((job, task_of(job, output_dir, verified)) for job in jobs)
    return [replace(task, round=number[job.run_dir]) for job, task in tasks]


def _code(settings: Settings) -> str:
    """Names what a run compiles: the same for all seeds, rates and optimizers."""
    if not settings.resources.compile_model:
        return ""
    parts, optim = settings.to_dict(), settings.optim
    size = parts["model"], parts["mechanisms"], parts["resources"]
    return identity([*size, optim.mixed_precision, optim.residual_fp32])
