"""lib/jobs/scheduler.py with real processes that crash, hang, get killed and resume."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO

import pytest

from lib import atomic_files
from lib.jobs import pulse, run_files
from lib.jobs.live_table import PlainView
from lib.jobs.options import Options
from lib.jobs.process import Attempt, Patience, Task
from lib.jobs.run_log import RunProgress, log_tail
from lib.jobs.scheduler import Scheduler
from lib.jobs.task_state import TaskState
from lib.jobs.turn import TURN, turn_path
from tests.lib.jobs.worker import STILL
from tests.scratch import is_alive, until

ROOT = Path(__file__).resolve().parents[3]
WORKER = ROOT / "tests" / "lib" / "jobs" / "worker.py"
QUICK = Patience(hang=0, dump=0.5, hung_end=10, stop=1000)


def task(root: Path, name: str, **what: object) -> Task:
    words = [f"{key}={value}" for key, value in what.items()]
    return Task(
        name=name,
        command=(sys.executable, str(WORKER), str(root / name), *words),
        run_dir=root / name,
        max_steps=int(str(what.get("steps", 3))),
    )


class Hurried(PlainView):
    """Seconds without a sign of life pass at once while all that runs stands still. So
    a limit can be far above what a busy machine needs to start a process."""

    def __init__(self, patch: pytest.MonkeyPatch, out: TextIO) -> None:
        super().__init__(out, every=0.0)
        self.passed = 0.0
        clock = SimpleNamespace(monotonic=lambda: time.monotonic() + self.passed)
        patch.setattr(pulse, "time", clock)

    def refresh(self, board: Scheduler) -> None:
        super().refresh(board)
        self.passed += pulse.UNSEEN * all(map(stands_still, board.running))


def stands_still(cell: TaskState) -> bool:
    log = cell.task.run_dir / "train.log"
    return log.exists() and log.read_text().endswith(f"{STILL}\n")


def run(
    tasks: list[Task],
    after: Callable[[TaskState], None] = lambda cell: None,
    hurry: pytest.MonkeyPatch | None = None,
    **options: object,
) -> tuple[int, str, Scheduler]:
    """Exit code, all that was said, and the scheduler. hurry: see Hurried."""
    out = io.StringIO()
    chosen = dataclasses.replace(Options(patience=QUICK, poll=0.02), **options)
    view = Hurried(hurry, out) if hurry else PlainView(out, every=0.0)
    scheduler = Scheduler(tasks, chosen, view, after)
    return scheduler.run(), out.getvalue(), scheduler


def steps_of(root: Path, name: str) -> list[int]:
    records = atomic_files.read_jsonl(root / name / "metrics.jsonl")
    return [r["step"] for r in records if r["kind"] == "train"]


def status_of(root: Path, name: str) -> tuple[str, str | None, int]:
    status = run_files.read_status(root / name)
    return status["status"], status["failure"], status["attempt"]


# ---- the ordinary course --------------------------------------------------------


def test_all_done_then_nothing_to_do(tmp_path: Path) -> None:
    tasks = [task(tmp_path, name, steps=5) for name in "abc"]
    ended: list[str] = []
    code, said, _ = run(tasks, lambda cell: ended.append(cell.task.name))
    assert code == 0 and ended == ["a", "b", "c"]
    assert "a: done in 0:0" in said and "val 0.4000" in said
    for name in "abc":
        assert status_of(tmp_path, name) == ("done", None, 1)
        assert steps_of(tmp_path, name) == [1, 2, 3, 4, 5]
    before = (tmp_path / "a" / "train.log").read_text()
    code, said, scheduler = run(tasks)
    assert code == 0 and scheduler.count("skipped") == 3 and said == ""
    assert (tmp_path / "a" / "train.log").read_text() == before


def test_a_run_that_ends_between_two_looks_shows_its_last_evaluation(
    tmp_path: Path,
) -> None:
    looks: list[int] = []

    class Seldom(PlainView):
        def refresh(self, board: Scheduler) -> None:
            """As if the run had ended before the first look at its records."""
            looks.append(len(board.running))

    out = io.StringIO()
    tasks = [task(tmp_path, "a", steps=5), task(tmp_path, "b", steps=3)]
    assert Scheduler(tasks, Options(patience=QUICK), Seldom(out)).run() == 0
    assert looks and "val 0.4000" in out.getvalue().split("b: started")[0]
    assert "val" not in out.getvalue().split("b: started")[1]  # it had no evaluation


def test_slots_are_used_at_once_and_never_twice(tmp_path: Path) -> None:
    tasks = [task(tmp_path, f"t{n}", steps=4, sleep=0.1) for n in range(4)]
    slots = ({"SLOT": "x"}, {"SLOT": "y"})
    most = 0

    class Counting(PlainView):
        def refresh(self, board: Scheduler) -> None:
            nonlocal most
            most = max(most, len(board.running))

    options = Options(patience=QUICK, slots=slots)
    assert Scheduler(tasks, options, Counting(io.StringIO())).run() == 0
    assert most == 2
    logs = [(tmp_path / f"t{n}" / "train.log").read_text() for n in range(4)]
    used = sorted(log.split("slot ")[1].strip() for log in logs)
    assert used[0][0] == "x" and used[-1][0] == "y"


def test_longest_first(tmp_path: Path) -> None:
    costs = {"short": 1.0, "long": 9.0, "middle": 3.0}
    tasks = [
        dataclasses.replace(task(tmp_path, name), cost=cost)
        for name, cost in costs.items()
    ]
    ended: list[str] = []
    run(tasks, lambda cell: ended.append(cell.task.name), longest_first=True)
    assert ended == ["long", "middle", "short"]


@pytest.mark.parametrize("longest", [False, True])
def test_tasks_start_in_rounds(tmp_path: Path, longest: bool) -> None:
    """In each of them in the given order, or the longest first."""
    rounds, costs = {"1": 0, "2": 1}, {"a": 1.0, "b": 9.0}
    tasks = [
        dataclasses.replace(
            task(tmp_path, name), round=rounds[name[1]], cost=costs[name[0]]
        )
        for name in ("a1", "a2", "b1", "b2")
    ]
    ended: list[str] = []
    run(tasks, lambda cell: ended.append(cell.task.name), longest_first=longest)
    assert ended == (["b1", "a1", "b2", "a2"] if longest else ["a1", "b1", "a2", "b2"])


def test_files_of_a_task_are_there_before_it_starts(tmp_path: Path) -> None:
    reads = "import sys; print(open(sys.argv[1] + '/job.json').read())"
    job = Task(
        name="a",
        command=(sys.executable, "-c", reads, str(tmp_path / "a")),
        run_dir=tmp_path / "a",
        files={"job.json": '{"x": 1}'},
    )
    run([job])
    assert '{"x": 1}' in (tmp_path / "a" / "train.log").read_text()
    outside = dataclasses.replace(job, files={"../x": ""})
    code, said, _ = run([outside])
    assert code == 1 and "leads out of" in said and not (tmp_path / "x").exists()


# ---- failures -------------------------------------------------------------------


def test_a_crash_is_reported_with_its_log_and_stops_nobody(tmp_path: Path) -> None:
    tasks = [
        task(tmp_path, "a"),
        task(tmp_path, "bad", fail="crash"),
        task(tmp_path, "c"),
    ]
    code, said, _ = run(tasks)
    assert code == 1
    assert "bad: FAILED (crash): exit code 1: KeyError: 'the cause'" in said
    assert "    | reading the weights\n    | KeyError: 'the cause'" in said
    assert status_of(tmp_path, "bad") == ("failed", "crash", 1)
    assert status_of(tmp_path, "a") == status_of(tmp_path, "c") == ("done", None, 1)
    fixed = [tasks[0], task(tmp_path, "bad"), tasks[2]]
    code, said, scheduler = run(fixed)
    assert code == 0 and scheduler.count("skipped") == 2
    assert status_of(tmp_path, "bad") == ("done", None, 2)
    assert "KeyError" in (tmp_path / "bad" / "train.1.log").read_text()
    assert "attempt 2" in (tmp_path / "bad" / "train.log").read_text()


def test_a_kill_for_memory_is_tried_again_and_told_to_the_next(tmp_path: Path) -> None:
    code, said, _ = run([task(tmp_path, "a", steps=6, at=5, fail="starved", first=2)])
    assert code == 0 and said.count("FAILED (oom)") == 2
    assert status_of(tmp_path, "a") == ("done", None, 3)
    assert "after failed/oom" in (tmp_path / "a" / "train.log").read_text()
    assert "after planned/None" in (tmp_path / "a" / "train.1.log").read_text()


@pytest.mark.parametrize(
    ("fail", "expected"),
    [
        ("oom", ("oom", "oom", 1)),
        ("nan", ("failed", "nan", 1)),
        ("disk", ("failed", "disk", 1)),
        ("says-oom", ("oom", "oom", 1)),
        ("undone", ("failed", "crash", 1)),
        ("damage", ("failed", "crash", 1)),
        ("segfault", ("failed", "crash", 1)),
        ("interrupted", ("interrupted", None, 1)),
    ],
)
def test_classes_of_failure(
    tmp_path: Path, fail: str, expected: tuple[str, str | None, int]
) -> None:
    code, said, _ = run([task(tmp_path, "a", fail=fail)])
    assert status_of(tmp_path, "a") == expected
    assert code == {"interrupted": 3, "disk": 6}.get(fail, 1)
    assert ("FAILED" in said) == (fail != "interrupted")
    message = run_files.read_status(tmp_path / "a")["message"]
    assert bool(message) == (fail != "interrupted")


def test_a_folder_that_goes_fails_its_task_and_stays_away(tmp_path: Path) -> None:
    code, said, _ = run([task(tmp_path, "a", fail="moved", at=2)])
    assert (
        code == 1
        and "tried again" not in said
        and f"{tmp_path / 'a'} was removed or moved" in said
    )
    assert not (tmp_path / "a").exists()


def test_a_command_that_cannot_start(tmp_path: Path) -> None:
    none = Task(name="a", command=("/no/such/program",), run_dir=tmp_path / "a")
    code, said, _ = run([none, task(tmp_path, "b")])
    assert code == 1 and "a: FAILED (crash)" in said and "/no/such/program" in said
    assert status_of(tmp_path, "a")[:2] == ("failed", "crash")
    assert status_of(tmp_path, "b")[0] == "done"


def test_a_killed_task_is_resumed_from_its_checkpoint(tmp_path: Path) -> None:
    killed = task(tmp_path, "a", steps=7, fail="kill", at=6, first=2)
    code, said, _ = run([killed])
    assert code == 0 and said.count("killed by SIGKILL") == 2
    assert "will be tried again" in said
    assert status_of(tmp_path, "a") == ("done", None, 3)
    assert steps_of(tmp_path, "a") == [1, 2, 3, 4, 5, 6, 7]
    assert "from 4" in (tmp_path / "a" / "train.log").read_text()


def test_what_looks_after_an_attempt_can_end_the_matrix(tmp_path: Path) -> None:
    """As when the results folder was moved: nothing is tried again in its place."""

    def after(cell: TaskState) -> None:
        raise LookupError(cell.state)

    with pytest.raises(LookupError, match="queued"):
        run([task(tmp_path, "a", steps=7, fail="kill", at=3)], after)
    assert status_of(tmp_path, "a") == ("failed", "killed", 1)


def test_retries_are_bounded(tmp_path: Path) -> None:
    code, _, _ = run([task(tmp_path, "a", steps=7, fail="kill", at=3)])
    assert code == 1
    assert status_of(tmp_path, "a") == ("failed", "killed", 3)
    logs = sorted(p.name for p in (tmp_path / "a").glob("train*.log"))
    assert logs == ["train.1.log", "train.2.log", "train.log"]


def test_a_crash_is_tried_again_only_after_progress(tmp_path: Path) -> None:
    early = task(tmp_path, "early", fail="crash", at=1)
    late = task(tmp_path, "late", steps=4, fail="crash", at=4, first=1)
    code, _, _ = run([early, late])
    assert code == 1
    assert status_of(tmp_path, "early") == ("failed", "crash", 1)
    assert status_of(tmp_path, "late") == ("done", None, 2)


def test_fail_fast_starts_nothing_more(tmp_path: Path) -> None:
    tasks = [task(tmp_path, "bad", fail="nan"), task(tmp_path, "never")]
    code, said, scheduler = run(tasks, fail_fast=True)
    assert code == 1 and "first failure is to stop all" in said
    assert scheduler.count("queued") == 1 and not (tmp_path / "never").exists()


def test_a_full_disk_stops_the_rest(tmp_path: Path) -> None:
    tasks = [task(tmp_path, "bad", fail="disk"), task(tmp_path, "never")]
    code, said, _ = run(tasks)
    assert code == 6 and "no space left" in said
    assert not (tmp_path / "never").exists()


def test_a_summary_that_cannot_be_written_leaves_no_child(tmp_path: Path) -> None:
    def after(cell: TaskState) -> None:
        raise atomic_files.DiskFull(28, "no space left")

    tasks = [task(tmp_path, "a"), task(tmp_path, "b", steps=10_000, sleep=0.05)]
    with pytest.raises(atomic_files.DiskFull):
        run(tasks, after, slots=({}, {}))
    status = run_files.read_status(tmp_path / "b")
    assert status["status"] == "interrupted" and not is_alive(status["pid"])


# ---- hangs ----------------------------------------------------------------------


def test_a_hang_is_ended_with_its_stacks_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung = task(tmp_path, "a", steps=4, fail="hang", at=3, first=1)
    patience = dataclasses.replace(QUICK, hang=30.0)
    code, said, _ = run([hung], hurry=monkeypatch, patience=patience)
    assert code == 0 and "FAILED (hang): no progress for 30 s" in said
    log = (tmp_path / "a" / "train.1.log").read_text()
    assert "in wait_for_ever" in log and "most recent call first" in log
    assert steps_of(tmp_path, "a") == [1, 2, 3, 4]


def test_a_hang_deaf_to_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = task(tmp_path, "a", fail="deaf", at=2)
    patience = dataclasses.replace(QUICK, hang=30.0, hung_end=0.1)
    code, _, scheduler = run([deaf], hurry=monkeypatch, patience=patience, retries={})
    assert code == 1 and status_of(tmp_path, "a") == ("failed", "hang", 1)
    outcome = scheduler.cells[0].outcome
    assert outcome is not None and outcome.exit_code == -signal.SIGKILL


def test_a_hang_while_it_prepares_is_noticed_by_what_earlier_runs_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that trains may stand still for twice that time."""
    gate = tmp_path / "gate"
    tasks = [
        task(tmp_path, "first", prepare=0.3),  # as long as it likes
        task(tmp_path, "hangs", prepare=0.1, fail="hang-early", first=1),
        task(tmp_path, "trains", prepare=0.1, steps=1, until=gate),
    ]
    patience = dataclasses.replace(QUICK, factor=100.0, preparing_least=0.5)

    class Long(Hurried):
        began = 0.0

        def refresh(self, board: Scheduler) -> None:
            super().refresh(board)
            if board.cells[1].failures and not gate.exists():
                self.began = self.began or self.passed
                limit = 100.0 * max(cell.preparation for cell in board.cells)
                if self.passed - self.began > 2.0 * limit:
                    gate.touch()

    out = io.StringIO()
    options = Options(patience=patience, poll=0.01)
    scheduler = Scheduler(tasks, options, Long(monkeypatch, out))
    assert scheduler.run() == 0
    assert re.search(
        r"hangs: FAILED \(hang\): still preparing: no progress for [0-9]+ s",
        out.getvalue(),
    )
    attempts = [status_of(tmp_path, cell.task.name)[2] for cell in scheduler.cells]
    assert attempts == [1, 2, 1]
    log = (tmp_path / "hangs" / "train.1.log").read_text()
    assert "in wait_for_ever" in log
    assert 0.29 < scheduler.cells[0].preparation < 60


def test_helpers_of_a_dead_leader_do_not_outlive_it(tmp_path: Path) -> None:
    code, _, _ = run([task(tmp_path, "a", fail="kill", child=1)], retries={})
    pid = int((tmp_path / "a" / "child").read_text())
    assert code == 1
    until(lambda: not is_alive(pid))


# ---- locks ----------------------------------------------------------------------


@pytest.fixture
def orphan(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker that no runner started, holding the lock of run "a"."""
    command = task(tmp_path, "a", steps=10_000, sleep=0.05).command
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    until(lambda: run_files.holder_file(run_files.run_lock(tmp_path / "a")).exists())
    yield process
    process.kill()
    process.wait()


def test_a_run_held_by_somebody_else_is_left_alone(
    tmp_path: Path, orphan: subprocess.Popen[bytes]
) -> None:
    tasks = [task(tmp_path, "a"), task(tmp_path, "b")]
    code, said, scheduler = run(tasks, lock_wait=1.0)
    assert code == 1 and scheduler.count("locked") == 1
    assert f"in use by pid {orphan.pid} on " in said and "a: locked" in said
    assert status_of(tmp_path, "b")[0] == "done"
    assert orphan.poll() is None and not (tmp_path / "a" / "train.log").exists()


def test_an_orphan_that_ends_is_waited_for(
    tmp_path: Path, orphan: subprocess.Popen[bytes]
) -> None:
    def see(cell: TaskState) -> None:
        orphan.send_signal(signal.SIGTERM)

    tasks = [task(tmp_path, "a", steps=40), task(tmp_path, "b")]
    code, said, _ = run(tasks, see, lock_wait=60.0)
    assert code == 0 and "waiting up to 60 s" in said
    assert steps_of(tmp_path, "a") == list(range(1, len(steps_of(tmp_path, "a")) + 1))
    assert status_of(tmp_path, "a")[0] == "done"


# ---- the runner itself is stopped -----------------------------------------------

RUNNER = """
import signal, sys
for each in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(each, signal.default_int_handler)  # nohup's are inherited
sys.path.insert(0, {root!r})
from pathlib import Path
from lib.jobs.process import Patience
from lib.jobs.live_table import PlainView
from lib.jobs.options import Options
from lib.jobs.scheduler import Scheduler
from tests.lib.jobs.test_scheduler import task
signal.signal(signal.SIGINT, signal.default_int_handler)
place = Path({place!r})
tasks = [task(place, name, **{what!r}) for name in "ab"]
options = Options(patience=Patience(stop=60), stop_file=place / "stop")
raise SystemExit(Scheduler(tasks, options, PlainView(sys.stdout)).run())
"""


def runner(place: Path, **what: object) -> subprocess.Popen[str]:
    """A process of its own that runs two tasks, the first of which is under way."""
    code = RUNNER.format(root=str(ROOT), place=str(place), what=what)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    until(lambda: len(steps_of(place, "a")) > 2 if (place / "a").exists() else False)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_lets_the_task_write_its_checkpoint(
    tmp_path: Path, number: int
) -> None:
    process = runner(tmp_path, steps=100_000, sleep=0.02, saving=0.3)
    process.send_signal(number)
    process.send_signal(number)  # a double of the first, as `timeout` sends it
    said, _ = process.communicate()
    assert process.returncode == 3 and "checkpoints of a" in said
    assert status_of(tmp_path, "a") == ("interrupted", None, 1)
    checkpoint = atomic_files.read_json(tmp_path / "a" / "ckpt.json")["step"]
    assert checkpoint == run_files.read_status(tmp_path / "a")["step"]
    assert not (tmp_path / "b").exists()
    reached = steps_of(tmp_path, "a")
    code, said, _ = run([task(tmp_path, "a", steps=len(reached) + 3)])
    assert code == 0 and steps_of(tmp_path, "a") == [
        *reached,
        *range(len(reached) + 1, len(reached) + 4),
    ]


def test_the_second_signal_kills(tmp_path: Path) -> None:
    process = runner(tmp_path, steps=100_000, sleep=0.02, saving=300)
    process.send_signal(signal.SIGINT)
    until((tmp_path / "a" / "saving").exists)
    time.sleep(1.1)  # what comes sooner is a double of the first
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()
    assert process.returncode == 3 and "killing what still runs" in said
    assert status_of(tmp_path, "a")[0] == "interrupted"
    assert not run_files.is_locked(run_files.run_lock(tmp_path / "a"))


def test_a_stop_file_stops_it(tmp_path: Path) -> None:
    process = runner(tmp_path, steps=100_000, sleep=0.02)
    (tmp_path / "stop").touch()
    said, _ = process.communicate()
    assert process.returncode == 3 and "asked to stop" in said
    assert status_of(tmp_path, "a")[0] == "interrupted"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal")
def test_kill_9_of_the_runner_ends_its_task_and_the_next_goes_on(
    tmp_path: Path,
) -> None:
    process = runner(tmp_path, steps=100_000, sleep=0.02)
    child = run_files.read_status(tmp_path / "a")["pid"]
    process.kill()
    process.communicate()
    until(lambda: not is_alive(child))
    assert status_of(tmp_path, "a")[0] == "interrupted"
    reached = len(steps_of(tmp_path, "a"))
    code, _, _ = run([task(tmp_path, "a", steps=reached + 2)])
    assert code == 0
    assert steps_of(tmp_path, "a") == list(range(1, reached + 3))
    assert status_of(tmp_path, "a") == ("done", None, 2)


# ---- small parts ----------------------------------------------------------------


def test_log_tail_is_what_a_terminal_would_show(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_bytes(b"x\n" * 90_000 + b"10%\r50%\r100%\n\x1b[31mred\x1b[0m\x07\n\n")
    assert log_tail(log, 3) == ("x", "100%", "red")
    assert log_tail(tmp_path / "none") == ()


def test_two_tasks_in_one_directory_are_refused(tmp_path: Path) -> None:
    twice = [task(tmp_path, "a"), task(tmp_path, "a")]
    with pytest.raises(ValueError, match="share a run directory"):
        Scheduler(twice, Options(), PlainView(io.StringIO()))


def test_children_know_their_runner(tmp_path: Path) -> None:
    shows = "import os; print(os.environ['KABLATE_PARENT_PID'], os.getpgid(0))"
    run([Task(name="a", command=(sys.executable, "-c", shows), run_dir=tmp_path)])
    parent, group = (tmp_path / "train.log").read_text().split()
    assert int(parent) == os.getpid() and int(group) != os.getpgid(0)


def test_the_time_left_of_a_time_budget_is_of_training_alone(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    progress = RunProgress(tmp_path, 0, budget=100.0)
    assert progress.seconds_left is None
    for step, spent in ((1, 10.0), (2, 40.0)):
        both = {"seconds": 1.5 * spent, "train_seconds": spent}
        for record in (
            {"kind": "train", "step": step, "loss": 1.0, **both},
            {"kind": "as_trained", "step": step, "seconds": 0.1},
        ):
            atomic_files.append_jsonl(metrics, record)
        progress.read()
    left = progress.seconds_left
    assert left is not None and 50.0 < left <= 60.0
    assert RunProgress(tmp_path, 0).seconds_left is None


def test_the_queue_of_a_time_budget_counts_too(tmp_path: Path) -> None:
    left: list[float] = []

    class Asking(PlainView):
        def refresh(self, board: Scheduler) -> None:
            for cell in board.running:
                assert cell.attempt is not None
                cell.attempt.progress.read()
            if board.seconds_left is not None:
                left.append(board.seconds_left)

    slow = {"steps": 10, "sleep": 0.1}  # so that its pace is seen
    tasks = [
        dataclasses.replace(task(tmp_path, n, **slow), max_steps=0, seconds=500.0)
        for n in "abc"
    ]
    options = Options(patience=QUICK)
    assert Scheduler(tasks, options, Asking(io.StringIO())).run() == 0
    assert max(left) > 1000.0  # two wait


# ---- ahead ----------------------------------------------------------------------


def test_a_slot_begins_as_many_ahead_as_it_may(tmp_path: Path) -> None:
    """A stop ends at once a task that only prepares, even a deaf one."""
    tasks = [task(tmp_path, f"t{n}", fail="deaf") for n in range(6)]
    asked, most = tmp_path / "stop", 0

    class Stopping(PlainView):
        def refresh(self, board: Scheduler) -> None:
            nonlocal most
            most = max(most, len(board.running))
            begun = [cell for cell in board.running if is_deaf(cell)]
            if len(begun) == 4:
                asked.touch()

    def is_deaf(cell: TaskState) -> bool:
        path = cell.task.run_dir / "train.log"
        return path.exists() and "attempt" in path.read_text()

    options = Options(patience=QUICK, ahead=1, slots=({}, {}), stop_file=asked)
    scheduler = Scheduler(tasks, options, Stopping(io.StringIO()))
    assert scheduler.run() == 3 and most == 4  # without the patience to stop
    assert scheduler.count("interrupted") == 4 and scheduler.count("queued") == 2
    assert status_of(tmp_path, "t0")[:2] == ("interrupted", None)


def test_what_another_task_is_compiling_is_not_compiled_twice(tmp_path: Path) -> None:
    """Nor does anything delay the first task of a slot, which nothing else keeps busy.
    An empty slot is not left idle for that."""
    what = {"prepare": 0.3, "steps": 4, "sleep": 0.1}
    names = ("a1", "a2", "a3", "b1", "b2", "c1")
    tasks = [
        dataclasses.replace(task(tmp_path, name, **what), code=name[0])
        for name in names
    ]
    found: dict[str, list[tuple[str, str]]] = {}

    class Noting(PlainView):
        def started(self, cell: TaskState) -> None:
            super().started(cell)
            others = [c for c in scheduler.running if c is not cell]
            found[cell.task.name] = [(c.task.name, c.stage) for c in others]

    options = Options(patience=QUICK, ahead=3)
    scheduler = Scheduler(tasks, options, Noting(io.StringIO()))
    assert scheduler.run() == 0 and sorted(found) == sorted(names)
    for name, others in found.items():
        preparing = [other[0] for other, stage in others if stage == "preparing"]
        assert name[0] not in preparing, found
        assert not others or len(preparing) < len(others), found
    assert any("preparing" in dict(others).values() for others in found.values())

    (tmp_path / "two").mkdir()
    pair = [
        dataclasses.replace(task(tmp_path / "two", name, **what), code="a")
        for name in ("a1", "a2")
    ]
    options = dataclasses.replace(options, slots=({}, {}))
    scheduler = Scheduler(pair, options, Noting(io.StringIO()))
    assert scheduler.run() == 0
    assert found["a2"] == [("a1", "preparing")]

    # With other code to begin with, empty slots compile different code.
    (tmp_path / "four").mkdir()
    four = [
        dataclasses.replace(task(tmp_path / "four", name, **what), code=name[0])
        for name in ("a1", "a2", "b1", "b2")
    ]
    found.clear()
    scheduler = Scheduler(four, options, Noting(io.StringIO()))
    assert scheduler.run() == 0
    assert list(found)[:2] == ["a1", "b1"]


def test_tasks_that_prepared_ahead_train_in_rounds(tmp_path: Path) -> None:
    waiting = ":".join(str(tmp_path / name / "waits") for name in ("a2", "b1"))
    tasks = [
        task(tmp_path, "a1", until=waiting),
        dataclasses.replace(task(tmp_path, "a2"), round=1),
        task(tmp_path, "b1"),
    ]
    ended: list[str] = []
    slots = ({TURN: turn_path(tmp_path, 0)},)
    code, _, _ = run(
        tasks, lambda cell: ended.append(cell.task.name), slots=slots, ahead=2
    )
    assert code == 0 and ended == ["a1", "b1", "a2"]


def test_what_begins_early_is_said_and_let_go_by_run(tmp_path: Path) -> None:
    out, gate = io.StringIO(), tmp_path / "gate"
    tasks = [task(tmp_path, name) for name in "ab"]
    scheduler = Scheduler(tasks, Options(patience=QUICK), PlainView(out))
    scheduler.begin(gate)
    until((tmp_path / "a" / "waits").exists)
    assert scheduler.count("running") == 1 and out.getvalue() == ""
    assert scheduler.run() == 0 and gate.exists()
    assert [status_of(tmp_path, name)[2] for name in "ab"] == [1, 1]
    assert out.getvalue().count("a: started") == 1
    assert not (tmp_path / "b" / "waits").exists(), "started when all may train"
    scheduler.withdraw()
    assert steps_of(tmp_path, "a") == [1, 2, 3], "results are never removed"


def test_nothing_is_left_of_what_is_withdrawn(tmp_path: Path) -> None:
    root = tmp_path / "results"
    (root / "other").mkdir(parents=True)
    scheduler = Scheduler([task(root, "step/a")], Options(), PlainView(io.StringIO()))
    scheduler.begin(root / "gate")
    until((root / "step" / "a" / "waits").exists)
    (attempt,) = (cell.attempt for cell in scheduler.running)
    scheduler.withdraw()
    assert isinstance(attempt, Attempt) and not is_alive(attempt.pid)
    assert [path.name for path in root.iterdir()] == ["other"]


def test_nothing_begins_early_where_an_earlier_attempt_left_files(
    tmp_path: Path,
) -> None:
    earlier = tmp_path / "b"
    earlier.mkdir()
    tasks = [task(tmp_path, name) for name in "ab"]
    scheduler = Scheduler(tasks, Options(), PlainView(io.StringIO()))
    scheduler.begin(tmp_path / "gate")
    scheduler.withdraw()
    assert not scheduler.running and list(tmp_path.iterdir()) == [earlier]
