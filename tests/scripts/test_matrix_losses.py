"""Failures of a matrix overnight, with the real trainer: nothing is lost."""

from __future__ import annotations

import random
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from lib import atomic_files
from lib.jobs import run_files
from tests.scratch import Gate, until
from tests.scripts.test_run_test_matrix import (
    TINY_RUNS,
    attempts,
    look,
    losses,
    start,
    summary,
    weights,
)
from tests.tinymatrix import run_command, run_matrix

ONE_SEED = "SEEDS=1"
TWO = "SEEDS=1 JOBS=2"


def manifest(folder: Path, run: str) -> dict[str, object]:
    return dict(atomic_files.read_json(folder / "results" / run / "manifest.json"))


def status(folder: Path, run: str) -> dict[str, object]:
    return run_files.read_status(folder / "results" / run)


# ---- failures of a run ----------------------------------------------------------


def test_each_kind_of_failure_is_told_and_stops_nobody(
    undisturbed: Path, folder: Path
) -> None:
    """Memory at update 3 of one run, NaN at 4 of the next, a crash at 6 of a third."""
    faults = "oom@3@baseline,nan@5@ra,crash@6@r25"
    words = ("--overrides", "SEEDS=1 STEPS=0,5,2 JOBS=2")
    done = run_matrix(folder, *words, KABLATE_TEST_FAULTS=faults)
    assert done.returncode == 1, done.stdout + done.stderr

    first, second, third = (*TINY_RUNS, "step02-r25/seed1")
    assert status(folder, first)["status"] == "done"
    assert manifest(folder, first)["micro_batch"] == 1
    pairs = zip(losses(folder, first), losses(undisturbed, first), strict=True)
    for mine, theirs in pairs:
        assert mine[:3] == theirs[:3]
        for a, b in zip(mine[3:], theirs[3:], strict=True):
            assert a == b or a == pytest.approx(b, rel=1e-5)

    assert "step05-ra/seed1: FAILED (nan)" in done.stdout
    assert (status(folder, second)["failure"], attempts(folder, second)) == ("nan", 1)
    assert "last good checkpoint: update 4" in str(status(folder, second)["message"])

    assert "FAILED (crash)" in done.stdout and "will be tried again" in done.stdout
    assert (status(folder, third)["failure"], attempts(folder, third)) == ("crash", 2)
    kept = folder / "results" / third
    assert "injected" in (kept / "train.1.log").read_text()
    assert [run["status"] for run in summary(folder).values()] == [
        "done",
        "failed",
        "failed",
    ]
    shown = look(folder, "--status", "--only", "step05*").stdout
    assert "last good checkpoint: update 4" in shown and "step00" not in shown
    done = run_matrix(folder, *words)  # without the faults
    assert done.returncode == 0, done.stdout
    assert first not in done.stdout
    assert [attempts(folder, run) for run in (second, third)] == [2, 3]
    assert losses(folder, second) == losses(undisturbed, second)


def test_fail_fast_starts_nothing_after_the_first_failure(folder: Path) -> None:
    words = ("--overrides", "SEEDS=1 FAIL_FAST=1")
    done = run_matrix(folder, *words, KABLATE_TEST_FAULTS="crash@1@baseline")
    assert done.returncode == 1 and "step05-ra/seed1: started" not in done.stdout
    assert f"{TINY_RUNS[0]}: FAILED (crash)" in done.stdout
    assert "    | RuntimeError: crash (injected)" in done.stdout
    assert "0 of 2 jobs are done" in done.stdout
    assert attempts(folder, TINY_RUNS[0]) == 1  # no update: hopeless, not tried again
    assert not (folder / "results" / TINY_RUNS[1]).exists()


def test_a_damaged_status_is_told_with_the_way_out(finished: Path) -> None:
    before = losses(finished, TINY_RUNS[1])
    (finished / "results" / TINY_RUNS[1] / "status.json").write_text("")
    done = look(finished, "--skip-verify", "--overrides", ONE_SEED)
    assert done.returncode == 1 and "1 of 2 jobs are done" in done.stdout
    shown = look(finished, "--status").stdout
    for said in (done.stdout, shown):
        assert "status.json: not JSON" in said and "rerun this run" in said
    # `make` would leave it alone again, so another command is shown, which helps.
    (way_out,) = re.findall(r"keep its files aside: (.*)", done.stderr)
    assert "to continue" not in done.stderr
    assert f"--only={TINY_RUNS[1]} --rerun (to run again what cannot be read" in shown
    again = run_command(finished, shlex.split(way_out))
    assert again.returncode == 0 and "1 of 1 jobs are done" in again.stdout
    assert losses(finished, TINY_RUNS[1]) == before


@pytest.mark.slow
def test_a_hang_is_ended_with_its_stacks_and_tried_again(folder: Path) -> None:
    words = ("--overrides", "SEEDS=1 STEPS=0 HANG_TIMEOUT=45")
    done = run_matrix(folder, *words, KABLATE_TEST_FAULTS="hang@5")
    assert done.returncode == 1 and "FAILED (hang)" in done.stdout
    run = TINY_RUNS[0]
    assert (status(folder, run)["failure"], attempts(folder, run)) == ("hang", 2)
    log = (folder / "results" / run / "train.log").read_text()
    assert "most recent call first" in log and "planted.py" in log


# ---- kill -9 --------------------------------------------------------------------


def processes_of(runner: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return psutil.Process(runner.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def strike(runner: subprocess.Popen[str], target: str) -> None:
    """Kill the runner, all trainers of the moment, or both, without warning."""
    victims = processes_of(runner)
    if target != "trainer":
        runner.kill()
    if target != "runner":
        for victim in victims:
            try:
                victim.kill()
            except psutil.NoSuchProcess:
                pass


def attempts_of_done(folder: Path) -> dict[str, int]:
    return {
        run: attempts(folder, run)
        for run in TINY_RUNS
        if status(folder, run)["status"] == "done"
    }


def until_any_moved(
    folder: Path, runner: subprocess.Popen[str], dice: random.Random
) -> None:
    """Wait for a random moment after some trainer has begun to write."""
    before = stamps(folder)
    until(lambda: runner.poll() is not None or stamps(folder) != before)
    time.sleep(dice.uniform(0.0, 1.5))


def stamps(folder: Path) -> list[int]:
    paths = [folder / "results" / run / "metrics.jsonl" for run in TINY_RUNS]
    return [path.stat().st_mtime_ns for path in paths if path.exists()]


def survive(
    undisturbed: Path, folder: Path, kills: int, seed: int, targets: Sequence[str]
) -> None:
    dice = random.Random(seed)
    done: dict[str, int] = {}
    slow = {"KABLATE_TEST_CHECKPOINT_SECONDS": "0.15"}  # most kills strike in a write
    for number in range(kills):
        runner = start(folder, "--overrides", TWO, **slow)
        until_any_moved(folder, runner, dice)
        strike(runner, targets[number % len(targets)])
        runner.communicate()
        for run, count in attempts_of_done(folder).items():
            assert done.setdefault(run, count) == count, f"{run} was done again"
        if len(done) == len(TINY_RUNS):
            check_equal(undisturbed, folder)
            shutil.rmtree(folder / "results")
            done = {}
    last = run_matrix(folder, "--overrides", TWO)
    assert last.returncode == 0, last.stdout + last.stderr
    for run, count in done.items():
        assert attempts(folder, run) == count
    check_equal(undisturbed, folder)


def check_equal(
    undisturbed: Path, folder: Path, runs: Sequence[str] = TINY_RUNS
) -> None:
    for run in runs:
        assert losses(folder, run) == losses(undisturbed, run)
        mine, theirs = (weights(d / "results" / run) for d in (folder, undisturbed))
        assert mine == theirs


def test_a_runner_that_is_ended_in_each_way_goes_on_exactly(
    undisturbed: Path, folder: Path
) -> None:
    """It is asked to end, killed, and killed with its trainer at the same moment; the
    trainer alone: in test_run_test_matrix.py; several: among the slow tests."""
    first, words = TINY_RUNS[0], ("--overrides", "SEEDS=1 STEPS=0")
    for number, way in enumerate(("asked", "runner", "both"), 1):
        gate = Gate(folder / way)
        runner = start(folder, *words, **gate.holds(f"hold@{2 * number + 2}"))
        until(gate.is_reached)
        if way == "asked":
            runner.send_signal(signal.SIGTERM)
        else:
            strike(runner, way)
        said, _ = runner.communicate()
        assert attempts(folder, first) == number, said
        if way == "asked":
            assert runner.returncode == 3 and "checkpoints of step00" in said
            assert summary(folder)[first]["status"] == "interrupted"
    last = run_matrix(folder, *words)
    assert last.returncode == 0, last.stdout + last.stderr
    assert attempts(folder, first) == 4
    check_equal(undisturbed, folder, [first])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_random_kills_change_nothing(undisturbed: Path, folder: Path) -> None:
    targets = ("trainer", "runner", "both")
    survive(undisturbed, folder, kills=20, seed=20, targets=targets)


# ---- the disk -------------------------------------------------------------------


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a tmpfs of some KiB as the results folder."""
    place = folder / "results"

    def mount(kib: int) -> Path:
        place.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(place)]
        try:
            done = subprocess.run(["mount", *options], capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount command here")
        if done.returncode:
            pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
        return place

    yield mount
    subprocess.run(["umount", "-l", str(place)], capture_output=True)


def test_a_disk_that_is_too_small_is_told_at_the_start(
    folder: Path, small_disk: Callable[[int], Path]
) -> None:
    place = small_disk(600)
    done = run_matrix(folder, "--overrides", ONE_SEED)
    assert done.returncode == 2 and "nothing was started" in done.stderr
    assert not (place / "step00-baseline").exists()


def test_a_disk_that_fills_up_loses_nothing(
    undisturbed: Path, folder: Path, small_disk: Callable[[int], Path]
) -> None:
    place = small_disk(66 * 1024)
    ballast = place / "ballast"
    gate = Gate(folder / "gate")
    process = start(folder, "--overrides", ONE_SEED, **gate.holds("hold@3@baseline"))
    until(gate.is_reached)
    fill(ballast)
    gate.open()
    said, _ = process.communicate()
    assert process.returncode in (1, 6), said
    assert "no space left" in said.lower(), said
    assert run_files.read_status(place / TINY_RUNS[0])["status"] != "done"
    ballast.unlink()
    done = run_matrix(folder, "--overrides", ONE_SEED)
    assert done.returncode == 0, done.stdout + done.stderr
    check_equal(undisturbed, folder)


def fill(path: Path) -> None:
    """Write until the disk is full, to the last byte."""
    with open(path, "wb", buffering=0) as file:
        for block in (1 << 16, 512, 1):
            while True:
                try:
                    if file.write(b"x" * block) < block:
                        break
                except OSError:
                    break


# ---- estimates ------------------------------------------------------------------


def test_an_estimate_is_made_used_and_scored(folder: Path) -> None:
    words = ("--overrides", "STEPS=0 JOBS=2 MAX_ITERS=20")
    done = run_matrix(folder, "--estimate", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 runs, 2 at a time: about" in done.stdout
    path = folder / "results" / "estimates.json"
    estimate = atomic_files.read_json(path)
    (cell,) = estimate["cells"]
    assert cell["name"] == "step00-baseline"
    assert cell["seconds"] > 20 * cell["seconds_per_step"] > 0
    assert cell["disk_bytes"] > 0 and cell["peak_memory_bytes"] > 0
    assert estimate["seconds"] > cell["seconds"]
    assert sorted(p.name for p in (folder / "results").iterdir() if p.is_dir()) == []

    done = run_matrix(folder, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    scored = atomic_files.read_json(folder / "results" / "summary.json")["estimates"]
    for measure in ("time", "memory"):
        assert scored[measure]["runs"] == 2
        assert scored[measure]["worst_run"].startswith("step00-baseline/seed")


def test_a_cell_that_cannot_run_is_told_by_its_probe(folder: Path) -> None:
    words = ("--overrides", "SEEDS=1 STEPS=0")
    fault = {"KABLATE_TEST_FAULTS": "crash@1"}  # hopeless: not tried again
    done = run_matrix(folder, "--estimate", *words, **fault)
    assert done.returncode == 1 and "the probe failed (crash" in done.stdout
