"""lib/jobs/cards.py: a GPU that breaks its runs does not stop the others. The GPUs are
only claimed: the runs are processes that read which one is theirs."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from lib.jobs import cards, run_files
from lib.jobs.cards import STRIKES, Cards
from lib.jobs.outcomes import Outcome
from lib.jobs.pulse import MEASURED
from lib.jobs.slots import Gpus, gpu_sets
from lib.jobs.task_state import TaskState
from tests.lib.jobs.test_scheduler import QUICK, run, status_of, task

TWO = gpu_sets(Gpus("cuda", ("0", "1")), 1)
ONE = TWO[:1]


def arms(root: Path, count: int, **what: object) -> list[Any]:
    """Runs of as many arms."""
    return [task(root, f"arm{n}/seed1", **what) for n in range(count)]


def test_a_broken_gpu_does_not_eat_the_queue(tmp_path: Path) -> None:
    """Every run fails there at once, and all are done on the other one."""
    lost, gate = [], tmp_path / "gate"  # the other one is busy until then

    def lose(place: str, why: str) -> None:
        lost.append(f"{place}: {why}")
        gate.touch()

    known = Cards(lose)
    tasks = arms(tmp_path, 6, fail="device", card="1", until=gate)
    code, said, _ = run(tasks, slots=TWO, cards=known)
    assert code == 8, said
    attempts = [status_of(tmp_path, one.name)[2] for one in tasks]
    assert sorted(attempts) == [1] * (6 - STRIKES) + [2] * STRIKES
    assert all(status_of(tmp_path, one.name)[0] == "done" for one in tasks)
    assert said.count("GPU 1 IS OUT OF USE: 3 runs in a row failed there") == 2
    assert "may be at fault" not in said
    assert len(lost) == 1 and lost[0].startswith("1: 3 runs")
    (tmp_path / "more").mkdir()
    code, said, _ = run(arms(tmp_path / "more", 2), slots=TWO, cards=known)
    assert code == 8 and "GPU 1 IS OUT OF USE" in said  # also for what comes after


def test_failures_with_a_finished_run_in_between_are_forgiven(tmp_path: Path) -> None:
    """Of the arms that fail, none is tried twice in a row: others tell whether the GPU
    is at fault."""
    bad = [task(tmp_path, f"bad/seed{n}", fail="device") for n in range(3)]
    good = [task(tmp_path, f"good{n}/seed1") for n in range(3)]
    code, said, scheduler = run([*bad, *good], slots=ONE)
    assert code == 1, said
    assert all(status_of(tmp_path, one.name)[0] == "done" for one in good), said
    assert "GPU 0 IS OUT OF USE" in said  # at the end, when only the bad arm is left
    assert "all of them are of one arm, which may be at fault instead" in said
    assert scheduler.count("failed") + scheduler.count("queued") == 3


def test_runs_that_die_together_count_once(tmp_path: Path) -> None:
    """As when a GPU is reset under the runs that share it."""
    tasks = arms(tmp_path, STRIKES, sleep=0.3, steps=3, fail="device", at=2, first=1)
    code, said, _ = run(tasks, slots=ONE * STRIKES, memory=1.0)
    assert code == 0 and said.count("FAILED (device)") == STRIKES, said


def test_a_gpu_that_hangs_one_run_after_another_is_found(tmp_path: Path) -> None:
    """Also if all of them were prepared there before the first one hung."""
    hang, known = Outcome(status="failed", failure="hang"), Cards()
    for number, one in enumerate(arms(tmp_path, STRIKES)):
        assert known.in_use("0")
        known.note("0", one, hang, began=float(number), now=300.0 * (number + 1))
    assert not known.in_use("0") and known.in_use("1")


def test_without_a_gpu_left_the_rest_waits(tmp_path: Path) -> None:
    tasks = arms(tmp_path, 9, fail="segfault")
    code, said, scheduler = run(tasks, slots=TWO)
    assert code in (1, 8) and "every GPU is out of use" in said
    assert "GPU 0 IS OUT OF USE" in said and "GPU 1 IS OUT OF USE" in said
    assert scheduler.count("queued") >= 3 and scheduler.count("done") == 0


def test_a_crash_of_the_code_blames_no_gpu(tmp_path: Path) -> None:
    tasks = arms(tmp_path, 5, fail="crash", card="1", sleep=0.05)
    code, said, _ = run(tasks, slots=TWO)
    assert code == 1 and "OUT OF USE" not in said


def test_a_hung_run_is_tried_on_the_other_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = {"steps": 5, "at": MEASURED + 1, "pulse": 30.0, "card": "1"}
    tasks = [task(tmp_path, f"arm{n}/seed1", fail="hang", **hangs) for n in range(3)]
    code, said, _ = run(tasks, hurry=monkeypatch, slots=TWO)
    assert code == 0, said
    assert all(status_of(tmp_path, one.name)[0] == "done" for one in tasks)
    assert said.count("FAILED (hang): no update for 30 s") == 1


def test_a_process_that_survives_sigkill_costs_its_gpu_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that a driver holds in the kernel: SIGKILL is kept from it. What shares
    its GPU starts again on the other one."""
    kill, spared = os.kill, []

    def lenient(pid: int, number: int) -> None:
        log = tmp_path / "stuck" / "seed1" / "status.json"
        if number == signal.SIGKILL and log.exists():
            if pid == run_files.read_status(log.parent)["pid"]:
                spared.append(pid)
                return
        kill(pid, number)

    monkeypatch.setattr(os, "kill", lenient)
    monkeypatch.setattr(os, "killpg", lambda group, number: None)
    stuck = task(tmp_path, "stuck/seed1", steps=8, at=4, fail="deaf", pulse=0.5)
    gate = tmp_path / "gate"  # the others run until it is given up
    others = arms(tmp_path, 3, prepare=0.1, until=gate)

    def after(cell: TaskState) -> None:
        if cell.task is stuck:
            gate.touch()

    patience = dataclasses.replace(QUICK, dump=0.1, hung_end=0.1, killed=2.0)
    try:
        code, said, _ = run(
            [stuck, *others], after, slots=TWO, patience=patience, ahead=1
        )
    finally:
        for pid in set(spared):
            kill(pid, signal.SIGKILL)
    assert code == 1, said
    assert "stuck/seed1: FAILED (hang): process" in said
    assert "does not end 2 s after SIGKILL" in said
    assert said.count("GPU 0 IS OUT OF USE: stuck/seed1: process") == 2
    assert all(status_of(tmp_path, one.name)[0] == "done" for one in others)
    assert status_of(tmp_path, "stuck/seed1") == ("failed", "hang", 1)
    assert said.count("since its GPU is out of use; it starts again") == 1


def test_what_blames_a_gpu_by_name() -> None:
    assert cards.out_of_use_line("0,1", "x") == "GPU 0,1 IS OUT OF USE: x"
