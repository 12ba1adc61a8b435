"""A matrix whose runs prepare while another trains: order, results, kills, stops."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from lib import atomic_files
from lib.jobs import run_files
from lib.jobs.phases import phases_of
from tests.scratch import Gate, until
from tests.scripts.test_run_test_matrix import (
    assert_equal_to,
    attempts,
    look,
    start,
    summary,
)
from tests.tinymatrix import run_matrix

RUNS = tuple(
    f"step{step}/seed{seed}" for step in ("00-baseline", "05-ra") for seed in (1, 2)
)
AHEAD = ("--overrides", "PREPARE_AHEAD=1")
SLOW = {"KABLATE_TEST_CHECKPOINT_SECONDS": "0.3"}


def times(folder: Path, run: str, attempt: int = 1) -> dict[str, float]:
    """Unix seconds of each phase of an attempt; of one passed twice, the last."""
    path = folder / "results" / run / "metrics.jsonl"
    found = phases_of(atomic_files.read_jsonl(path))
    return {name: at for name, at, number in found if number == attempt}


def has(folder: Path, run: str, phase: str) -> Callable[[], bool]:
    return lambda: phase in times(folder, run)


def pid_of(folder: Path, run: str) -> int:
    return int(run_files.read_status(folder / "results" / run)["pid"])


def test_runs_prepare_while_others_train_and_train_one_at_a_time(
    undisturbed: Path, folder: Path
) -> None:
    words = ("--overrides", "PREPARE_AHEAD=1 SEEDS=1 STEPS=0,5,6")
    done = run_matrix(folder, *words, **SLOW)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 more run prepares in its slot" in done.stdout
    assert_equal_to(undisturbed, folder)
    runs = [path.parent for path in (folder / "results").glob("*/*/job.json")]
    found = [times(folder, str(run.relative_to(folder / "results"))) for run in runs]
    assert len(found) == 3
    turns = sorted((run["turn"], run["released"]) for run in found)
    for (_, before), (after, _) in zip(turns, turns[1:], strict=False):
        assert before <= after, "two runs trained at a time"
    by_turn = sorted(found, key=lambda run: run["turn"])
    for training, following in zip(by_turn, by_turn[1:], strict=False):
        assert following["started"] < training["released"], "nothing was done ahead"
    for third in by_turn[2:]:  # only after the first has let go
        assert third["started"] > by_turn[0]["released"]


def test_a_killed_run_lets_the_next_one_train_and_is_tried_again(
    undisturbed: Path, folder: Path
) -> None:
    gate = Gate(folder / "gate")
    words = ("--overrides", "PREPARE_AHEAD=1 SEEDS=1")
    runner = start(folder, *words, **gate.holds("hold@3"))
    first, second = RUNS[0], RUNS[2]
    until(lambda: all(has(folder, run, "ready")() for run in (first, second)))
    until(gate.is_reached)
    first, second = sorted(
        (first, second), key=lambda run: "turn" not in times(folder, run)
    )
    status = look(folder, "--status", "--overrides", "SEEDS=1").stdout
    assert re.search(rf"{second} +waiting +1 ", status), status
    os.kill(pid_of(folder, first), signal.SIGKILL)
    gate.open()
    said = runner.communicate()[0]
    assert runner.returncode == 0, said
    assert f"{first}: FAILED (killed)" in said
    assert [attempts(folder, run) for run in (first, second)] == [2, 1]
    assert times(folder, second)["turn"] < times(folder, first, 2)["turn"]
    assert_equal_to(undisturbed, folder)


@pytest.mark.slow
def test_a_stop_ends_the_run_that_waits_too(folder: Path) -> None:
    runner = start(folder, *AHEAD, KABLATE_TEST_CHECKPOINT_SECONDS="1")
    until(lambda: sum(has(folder, run, "ready")() for run in RUNS[:2]) == 2)
    waiting = next(run for run in RUNS[:2] if "turn" not in times(folder, run))
    runner.send_signal(signal.SIGINT)
    said = runner.communicate()[0]
    assert runner.returncode == 3, said
    left = run_files.read_status(folder / "results" / waiting)
    assert (left["status"], left["step"]) == ("interrupted", 0)
    assert "waiting for its turn" in left["message"]
    assert {run["status"] for run in summary(folder).values()} == {
        "interrupted",
        "planned",
    }


@pytest.mark.slow
def test_a_killed_runner_leaves_nobody_waiting(undisturbed: Path, folder: Path) -> None:
    runner = start(folder, "--overrides", "PREPARE_AHEAD=1 SEEDS=1", **SLOW)
    runs = RUNS[0], RUNS[2]
    until(lambda: all(has(folder, run, "ready")() for run in runs))
    runner.kill()
    runner.communicate()
    locks = [run_files.run_lock(folder / "results" / run) for run in runs]
    until(lambda: not any(map(run_files.is_locked, locks)))
    again = run_matrix(folder, "--overrides", "PREPARE_AHEAD=1 SEEDS=1")
    assert again.returncode == 0, again.stdout + again.stderr
    assert_equal_to(undisturbed, folder)


def test_out_of_memory_before_its_turn_is_tried_again_alone(
    undisturbed: Path, folder: Path
) -> None:
    """The micro batch stays as it is, and the run that trains sees nothing of it."""
    faults = {"KABLATE_TEST_FAULTS": "oom-ahead@0@ra", **SLOW}
    done = run_matrix(folder, "--overrides", "PREPARE_AHEAD=1 SEEDS=1", **faults)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_equal_to(undisturbed, folder)
    log = (folder / "results" / RUNS[2] / "train.log").read_text()
    assert "preparing again once the device is free" in log
    ahead, alone = RUNS[2], RUNS[0]
    assert times(folder, ahead)["model"] > times(folder, ahead)["turn"]
    manifest = atomic_files.read_json(folder / "results" / ahead / "manifest.json")
    assert manifest["out_of_memory"] == [] and manifest["micro_batch"] == 2
    assert [attempts(folder, run) for run in (alone, ahead)] == [1, 1]
