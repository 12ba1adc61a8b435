"""Jobs share a GPU while the memory of their recorded probes fits: no GPU needed."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2.plan.jobs import Job, Plan
from gpt2.plan.names import ESTIMATES_FILE
from gpt2.plan.planning import make_plan
from gpt2.run import estimate, gpu_sharing
from lib.jobs.live_table import PlainView
from lib.jobs.options import Options
from lib.jobs.process import Task
from lib.jobs.scheduler import Scheduler
from lib.jobs.slots import Gpus, find_gpus, gpu_sets, place_of
from tests.lib.jobs.test_scheduler import QUICK, WORKER
from tests.lib.jobs.test_slots import nvidia
from tests.tinymatrix import TINY, write_config

GIB = 2**30
Make = Callable[..., Plan]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Three steps, two seeds, with probes that took so much of an 80 GiB GPU."""
    monkeypatch.chdir(tmp_path)

    def plan(taken: dict[str, float], **more: object) -> Plan:
        lines = "".join(f"CONFIG_{name}={value}\n" for name, value in more.items())
        found = make_plan(write_config(tmp_path, TINY.replace("0,5", "0,2,5") + lines))
        found.output_dir.mkdir()
        records = [
            record(job, taken[job.name]) for job in found.jobs if job.name in taken
        ]
        estimates = {"schema": estimate.SCHEMA, "cells": records}
        estimate.run_files.atomic_write_json(
            found.output_dir / ESTIMATES_FILE, estimates
        )
        return found

    return plan


def record(job: Job, gib: float) -> dict[str, object]:
    """As estimate.measure writes it, of a probe on a GPU."""
    return {
        "name": job.cell,
        "hash": estimate.hash_of(job),
        "seconds": 9.0,
        "gpu_reserved_bytes": round(gib * GIB) - gpu_sharing.CONTEXT,
        "gpu_memory_bytes": 80 * GIB,
    }


class Watching(PlainView):
    """Sees which jobs were side by side on each GPU."""

    together: set[tuple[str, ...]]

    def refresh(self, board: Scheduler) -> None:
        for place in set(map(place_of, board.options.slots)):
            names = sorted(cell.task.name for cell in board.occupancy.at(place))
            self.together |= {tuple(names)} if names else set()


def carry_out(plan: Plan, gpus: Gpus, at_once: int) -> tuple[set[str], str]:
    """Steps that were side by side on one GPU, "0+5", and what was said."""
    out = io.StringIO()
    view = Watching(out)
    view.together = set()
    options = Options(slots=(gpu_sets(gpus, 1) * at_once)[:at_once], patience=QUICK)
    tasks = [stand_in(job, plan.output_dir) for job in plan.jobs]
    tasks, options = gpu_sharing.share(tasks, plan.jobs, plan.output_dir, options, view)
    assert Scheduler(tasks, options, view).run() == 0
    steps = {
        "+".join(name[4:6].lstrip("0") or "0" for name in t) for t in view.together
    }
    return steps, out.getvalue()


def stand_in(job: Job, root: Path) -> Task:
    words = (str(root / job.run_dir), "steps=3", "sleep=0.15")
    command = (sys.executable, str(WORKER), *words)
    return Task(name=job.run_dir, command=command, run_dir=root / job.run_dir)


def one_gpu(tmp_path: Path) -> Gpus:
    found = find_gpus({}, nvidia(tmp_path / "machine", 1))
    assert found is not None
    return found


def test_jobs_share_a_gpu_while_their_peaks_fit(make: Make, tmp_path: Path) -> None:
    plan = make({"baseline": 30, "r25": 50, "ra": 70})  # of 76 GiB
    together, said = carry_out(plan, one_gpu(tmp_path), 3)
    assert {"0+0", "5"} <= together <= {"0", "0+0", "2", "5"}
    assert "make estimate" not in said


def test_what_was_not_measured_has_a_gpu_of_its_own(make: Make, tmp_path: Path) -> None:
    plan = make({"baseline": 1, "ra": 1})
    together, said = carry_out(plan, one_gpu(tmp_path), 3)
    assert not {step for step in together if "2" in step} - {"2"}
    assert "0+0+5" in together
    assert "`make estimate` measures it" in said


def test_a_number_is_trusted_without_measurement(make: Make, tmp_path: Path) -> None:
    plan = make({"ra": 70}, JOBS_PER_GPU=2)
    together, said = carry_out(plan, one_gpu(tmp_path), 2)
    assert "0+0" in together and "5+5" not in together
    assert said.count("make estimate") == 0


def test_an_estimate_counts_on_no_more_than_fits(make: Make) -> None:
    plan = make({"baseline": 30, "r25": 30, "ra": 30})
    records = estimate.known(plan.output_dir, plan.jobs)
    slots = gpu_sets(Gpus("cuda", ("0", "1")), 1) * 4
    assert gpu_sharing.at_once(records, slots) == 4
    assert gpu_sharing.at_once([None], slots) == 8
    tight = {"gpu_reserved_bytes": 79 * GIB, "gpu_memory_bytes": 80 * GIB}
    assert gpu_sharing.at_once([tight], slots) == 2  # one alone is always let in
