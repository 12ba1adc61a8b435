"""gpt2/matrix.py: a job as a task. tests/scripts/test_run_test_matrix.py runs them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from gpt2.folder import MatrixError
from gpt2.matrix import Watch, task_of
from gpt2.plan import make_plan
from lib.progress import PlainView
from tests.results_factory import write_matrix
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


def test_a_folder_that_has_gone_ends_the_matrix(tmp_path: Path) -> None:
    results = write_matrix(tmp_path / "out", (0,), (1,))
    (results / "matrix.json").write_text('{"jobs": []}')
    watch = Watch(results, PlainView(io.StringIO()))
    watch(None)
    results.rename(tmp_path / "elsewhere")
    with pytest.raises(MatrixError, match="was moved or removed"):
        watch(None)
    assert not results.exists()
