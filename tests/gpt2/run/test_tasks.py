"""gpt2/run/tasks.py: a job as a task of the scheduler."""

from __future__ import annotations

import json
from pathlib import Path

from gpt2.plan.planning import make_plan
from gpt2.run.tasks import task_of, tasks_of
from tests.gpt2.tinytraining import tiny_config
from tests.tinymatrix import write_config


def test_a_task_is_the_trainer_on_its_job(tmp_path: Path) -> None:
    plan = make_plan(write_config(tmp_path))
    task = task_of(plan.jobs[3], plan.output_dir, "passed")
    words = list(task.command)
    assert words[words.index("--run-dir") + 1] == str(task.run_dir)
    assert words[words.index("--job") + 1] == str(task.run_dir / "job.json")
    assert task.run_dir.is_absolute() and task.name == "step05-ra/seed2"
    assert json.loads(task.files["job.json"]) == plan.jobs[3].to_json()
    assert task.max_steps == 10 and task.cost > 0
    assert task.env["KABLATE_VERIFIED"] == "passed"


def test_first_seeds_of_all_arms_train_before_second_ones(tmp_path: Path) -> None:
    tuned = ("LR_SWEEP=1e-3,2e-3", "LR_TUNING_SEEDS=9", "SEEDS=1,2", "CONTROLS=y")
    words = ("RA_MLA_ABLATION_MODE=y", "STEPS=0,5", *tuned)
    jobs = make_plan(tiny_config(*words)).jobs
    tasks = tasks_of(jobs, tmp_path, "")
    assert [task.name for task in tasks] == [job.run_dir for job in jobs]
    found = {(task.name.rpartition("/")[2], task.round) for task in tasks}
    assert found == {("seed1", 0), ("seed2", 1), ("seed9", 2)}


def test_tasks_that_compile_the_same_are_recognized(tmp_path: Path) -> None:
    def codes(*settings: str) -> list[str]:
        words = ("RA_MLA_ABLATION_MODE=y", "CONTROLS=n", *settings)
        jobs = make_plan(tiny_config(*words)).jobs
        return [task_of(job, tmp_path, "").code for job in jobs]

    swept = "SWEEP=LEARNING_RATE=1e-3,2e-3"
    found = codes("STEPS=0,5", "SEEDS=1,2", swept, "COMPILE_MODEL=y")
    assert len(found) == 8 and len(set(found)) == 2, "one for each step"
    assert codes("STEPS=0", "COMPILE_MODEL=n") == [""]
