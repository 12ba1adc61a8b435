"""gpt2/run/runner.py. tests/scripts/test_run_test_matrix.py runs whole matrices."""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt2.plan.jobs import Plan
from gpt2.plan.planning import make_plan
from gpt2.report.results import MatrixResults
from gpt2.report.summary import write_summary
from gpt2.run.results_dir import MatrixError
from gpt2.run.runner import Watch, _schedule, prepare, run
from gpt2.run.verification import PASSED, Certificates
from lib import atomic_files
from lib.jobs import run_files
from lib.jobs.live_table import PlainView
from lib.jobs.options import Options
from lib.jobs.process import Attempt
from lib.output import EXIT_FAILED
from tests.results_factory import write_matrix
from tests.tinymatrix import write_config


def test_a_folder_that_has_gone_ends_the_matrix(tmp_path: Path) -> None:
    results = write_matrix(tmp_path / "out", (0,), (1,))
    (results / "matrix.json").write_text('{"jobs": []}')
    watch = Watch(results, PlainView(io.StringIO()))
    watch(None)
    results.rename(tmp_path / "elsewhere")
    with pytest.raises(MatrixError, match="was moved or removed"):
        watch(None)
    assert not results.exists()


def test_no_run_is_started_in_a_folder_that_has_gone(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run ends, the folder is moved, and the next run would have made it again."""
    out = io.StringIO()
    scheduler, _ = _schedule(
        plan.jobs[1:], plan.output_dir, PASSED, Options(), PlainView(out)
    )
    monkeypatch.setattr(
        Attempt, "__init__", lambda *_: pytest.fail("a run was started")
    )
    plan.output_dir.rename(tmp_path / "elsewhere")
    with pytest.raises(MatrixError, match="was moved or removed"):
        scheduler.run()
    assert not plan.output_dir.exists()
    with pytest.raises(FileNotFoundError, match="summary.json"):
        write_summary(MatrixResults(plan.output_dir))
    assert not plan.output_dir.exists()


# ---- what is missing --------------------------------------------------------------


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Steps 0 and 5, seeds 1 and 2, of which step 0, seed 1 is done."""
    monkeypatch.chdir(tmp_path)
    plan = make_plan(write_config(tmp_path))
    done = plan.output_dir / plan.jobs[0].run_dir
    atomic_files.atomic_write_json(plan.output_dir / "matrix.json", {"jobs": []})
    atomic_files.atomic_write_json(done / "job.json", plan.jobs[0].to_json())
    run_files.write_status(done, status="done")
    return plan


def reads_of(name: str) -> Callable[[], Counter[str]]:
    """Number of times each file of this name was opened since then."""
    found: Counter[str] = Counter()

    def note(event: str, given: tuple[Any, ...]) -> None:
        if event == "open" and str(given[0]).endswith(f"/{name}"):
            found[str(given[0])] += 1

    sys.addaudithook(note)
    return found.copy


def meanwhile(plan: Plan, run_dir: str) -> Certificates:
    """Certificates, failed for step 5, while another process has finished a run."""
    (plan.output_dir / run_dir).mkdir(parents=True)
    run_files.write_status(plan.output_dir / run_dir, status="done")
    return Certificates(failed={"step05-ra": "acting"}, table={"cells": []})


def test_what_is_missing_is_read_once_before_the_proofs(plan: Plan) -> None:
    reads, before = reads_of(run_files.STATUS_FILE), []

    def verify(stop_file: Path) -> Certificates:
        before.append(reads())
        return meanwhile(plan, "step05-ra/seed1")

    view, options = PlainView(io.StringIO()), Options(fail_fast=True)
    assert run(plan, {}, options, view, verify) == EXIT_FAILED
    assert before == [{"results/step00-baseline/seed1/status.json": 1}]
    ends = [run_files.read_status(plan.output_dir / job.run_dir) for job in plan.jobs]
    found = [(status["status"], status["failure"]) for status in ends]
    done, planned, failed = ("done", None), ("planned", None), "certificate"
    assert found == [done, planned, done, ("failed", failed)]


def test_what_ended_during_the_proofs_is_not_submitted(plan: Plan) -> None:
    view = PlainView(io.StringIO())
    ended = "step00-baseline/seed2"
    found = prepare(plan, {}, view, lambda stop: meanwhile(plan, ended))
    assert found == []
