"""lib/jobs/occupancy.py: where a task starts, and where it rather waits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib import atomic_files
from lib.jobs.occupancy import Occupancy
from lib.jobs.options import Options
from lib.jobs.phases import phase_record
from lib.jobs.process import Task
from lib.jobs.run_log import RunProgress
from lib.jobs.slots import Gpus, gpu_sets
from lib.jobs.task_state import TaskState

SLOTS = gpu_sets(Gpus("cuda", ("0", "1", "2")), 1)


class Claimed:
    """An attempt with records that a test writes; nothing runs."""

    begun, number, started = "started", 1, 0.0

    def __init__(self, run_dir: Path, step: int) -> None:
        run_dir.mkdir(parents=True)
        metrics = run_dir / "metrics.jsonl"
        atomic_files.append_jsonl(metrics, phase_record("turn", 1))
        atomic_files.append_jsonl(metrics, {"kind": "train", "step": step})
        self.progress = RunProgress(run_dir, 100)

    def poll(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...


@pytest.fixture
def running(tmp_path: Path) -> Any:
    def make(slots: int, ahead: int, *tasks: tuple[int, float, int]) -> Occupancy:
        """Slots with tasks: number of the slot, cost, percent done."""
        found = Occupancy(Options(slots=SLOTS[:slots], ahead=ahead))
        for number, (slot, cost, step) in enumerate(tasks):
            cell = queued(cost, str(number))
            cell.attempt = Claimed(tmp_path / f"{len(list(tmp_path.iterdir()))}", step)
            found.put(cell, slot)
        return found

    return make


def queued(cost: float = 1.0, name: str = "next", code: str = "") -> TaskState:
    run_dir = Path("/nowhere") / name
    return TaskState(
        task=Task(name=name, command=(), run_dir=run_dir, cost=cost, code=code)
    )


def slot_for(there: Occupancy, cell: TaskState) -> int | None:
    return there.slot_for(cell, there.free(), [cell])


def test_a_task_prepares_where_it_can_train_first(running: Any) -> None:
    assert slot_for(running(2, 2, (0, 1.0, 10), (1, 1.0, 50)), queued()) == 1
    assert slot_for(running(2, 2, (0, 3.0, 50), (1, 1.0, 0)), queued()) == 1
    assert slot_for(running(3, 2, (0, 1.0, 0), (1, 1.0, 99)), queued()) == 2


def test_it_waits_for_that_slot_rather_than_stay_behind_a_long_task(
    running: Any,
) -> None:
    """Slot 1 has all that may prepare there, and less to train than slot 0."""
    there = running(2, 1, (0, 9.0, 0), (1, 1.0, 50), (1, 1.0, 0))
    assert there.free() == [0] and slot_for(there, queued()) is None
    later = running(2, 1, (0, 1.0, 0), (1, 1.0, 50), (1, 1.0, 0))
    assert later.free() == [0] and slot_for(later, queued()) == 0


def test_a_gpu_that_failed_with_it_is_avoided(running: Any) -> None:
    cell = queued()
    cell.failed_at.add("0")
    assert slot_for(running(2, 0), cell) == 1
    assert slot_for(running(2, 0, (1, 1.0, 0)), cell) is None
    assert slot_for(running(1, 0), cell) == 0
