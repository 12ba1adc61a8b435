"""lib/jobs/fork_server.py: what is forked from a template is a task like any other."""

from __future__ import annotations

import dataclasses
import io
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import pytest

from lib.jobs import run_files
from lib.jobs.fork_server import Preload
from lib.jobs.process import Task, environment
from lib.jobs.progress import PlainView
from lib.jobs.scheduler import Options, Scheduler
from tests.lib.jobs.test_scheduler import (
    QUICK,
    ROOT,
    is_alive,
    run,
    status_of,
    steps_of,
    task,
    until,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs subreapers")


def preloaded(root: Path, name: str, **what: object) -> Task:
    return dataclasses.replace(task(root, name, **what), preloads=True)


def log_of(root: Path, name: str, attempt: str = "") -> str:
    return (root / name / f"train{attempt}.log").read_text()


def test_it_is_a_child_of_the_runner_in_a_session_of_its_own(tmp_path: Path) -> None:
    tasks = [preloaded(tmp_path, name) for name in "abc"]
    code, _, _ = run(tasks, slots=({"SLOT": "x"}, {"SLOT": "y"}))
    assert code == 0
    logs = [log_of(tmp_path, name) for name in "abc"]
    for log in logs:
        if "forked" in log:
            words = log.partition("parent ")[2].split()
            assert int(words[0]) == os.getpid()
            assert words[2] == words[4]  # session and pid
    # a slot of another environment is served as ever
    assert {"forked" in log for log in logs if "slot x" in log} == {True}
    modes = {(tmp_path / name / "train.log").stat().st_mode for name in "abc"}
    assert len(modes) == 1  # as the user's umask has it
    assert {"forked" in log for log in logs if "slot y" in log} == {False}


def test_a_single_task_makes_no_template(tmp_path: Path) -> None:
    assert run([preloaded(tmp_path, "a")])[0] == 0
    assert "executed" in log_of(tmp_path, "a")


def test_one_begun_before_serves_even_a_single_task(tmp_path: Path) -> None:
    single = preloaded(tmp_path, "a")
    view = PlainView(io.StringIO())
    with Preload(view.note) as preload:
        preload.begin(single.command, environment(single, {}))
        assert Scheduler([single], Options(), view, preload=preload).run() == 0
    assert "forked" in log_of(tmp_path, "a")


def test_a_killed_one_is_killed_with_its_helpers_and_resumed(tmp_path: Path) -> None:
    bad = preloaded(tmp_path, "a", steps=7, fail="kill", at=6, first=1, child=1)
    code, said, _ = run([bad, preloaded(tmp_path, "b")])
    assert code == 0 and said.count("killed by SIGKILL") == 1
    assert status_of(tmp_path, "a") == ("done", None, 2)
    assert steps_of(tmp_path, "a") == [1, 2, 3, 4, 5, 6, 7]
    assert "forked" in log_of(tmp_path, "a", ".1") and "forked" in log_of(tmp_path, "a")
    until(lambda: not is_alive(int((tmp_path / "a" / "child").read_text())))


@pytest.mark.parametrize(
    ("fail", "expected"),
    [("crash", "crash"), ("nan", "nan"), ("oom", "oom"), ("segfault", "crash")],
)
def test_exit_codes_are_its_own(tmp_path: Path, fail: str, expected: str) -> None:
    run([preloaded(tmp_path, "a", fail=fail), preloaded(tmp_path, "b")])
    assert status_of(tmp_path, "a")[1] == expected
    assert "forked" in log_of(tmp_path, "a")
    assert status_of(tmp_path, "b")[0] == "done"


def test_a_hang_leaves_its_stacks(tmp_path: Path) -> None:
    hung = preloaded(tmp_path, "a", steps=4, fail="hang", at=3, first=1)
    patience = dataclasses.replace(QUICK, hang=2.0)
    code, said, _ = run([hung, preloaded(tmp_path, "b")], patience=patience)
    assert code == 0 and "FAILED (hang)" in said
    log = log_of(tmp_path, "a", ".1")
    assert "forked" in log and "in wait_for_ever" in log


RUNNER = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from lib.jobs.progress import PlainView
from lib.jobs.scheduler import Options, Scheduler
from tests.lib.jobs.test_fork_server import preloaded
place = Path({place!r})
tasks = [preloaded(place, name, steps=100_000, sleep=0.02) for name in "ab"]
raise SystemExit(Scheduler(tasks, Options(), PlainView(sys.stdout)).run())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_the_runner(tmp_path: Path, number: signal.Signals) -> None:
    code = RUNNER.format(root=str(ROOT), place=str(tmp_path))
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    metrics = tmp_path / "a" / "metrics.jsonl"
    until(lambda: metrics.exists() and len(steps_of(tmp_path, "a")) > 2)
    children = [p.pid for p in psutil.Process(runner.pid).children(recursive=True)]
    assert len(children) == 2  # the task and the template
    runner.send_signal(number)
    runner.wait()
    until(lambda: not any(map(is_alive, children)))
    assert "forked" in log_of(tmp_path, "a")
    assert status_of(tmp_path, "a")[0] == "interrupted"  # it wrote its checkpoint
    assert run_files.read_json(tmp_path / "a" / "ckpt.json")["step"] > 2


SCRIPT = """
import sys
sys.path[0] = {root!r}
from pathlib import Path
from lib.jobs import fork_server as preload, run_files as rundir
import said
def main(words):
    print(said.TEXT)
    (said.HERE / "said.py").write_text(said.SOURCE.replace("old", "changed"))
    rundir.write_status(words[0], status="done")
    return 0
{more}
if sys.argv[1:2] == [preload.FLAG]:
    sys.exit(preload.serve(int(sys.argv[2]), main, said.HERE))
sys.exit(main(sys.argv[1:]))
"""
SAID = """
from pathlib import Path
HERE = Path(__file__).parent
SOURCE = Path(__file__).read_text()
TEXT = "old"
"""


def scripted(root: Path, more: str = "", **environ: str) -> list[Task]:
    """Three tasks of a script, the first of which changes what the others import."""
    (root / "said.py").write_text(SAID)
    script = root / "script.py"
    script.write_text(SCRIPT.format(root=str(ROOT), more=more))
    return [
        Task(
            name=name,
            command=(sys.executable, str(script), str(root / name)),
            run_dir=root / name,
            env={"PYTHONPATH": str(root), **environ},
            preloads=True,
        )
        for name in "abc"
    ]


def test_changed_sources_are_imported_anew(tmp_path: Path) -> None:
    assert run(scripted(tmp_path))[0] == 0
    said = [log_of(tmp_path, name).strip() for name in "abc"]
    assert said == ["old", "changed", "changed"]


class JustTooLate(Preload):
    """Ready between two questions: the first is still told no."""

    asked = False

    def is_ready(self, command: Sequence[str], environ: Mapping[str, str]) -> bool:
        if self.asked:
            return super().is_ready(command, environ)
        self.asked = True
        until(lambda: super(JustTooLate, self).is_ready(command, environ))
        return False


def test_nobody_overtakes_who_waits_for_it(tmp_path: Path) -> None:
    view = PlainView(io.StringIO())
    with JustTooLate(view.note) as preload:
        scheduler = Scheduler(scripted(tmp_path), Options(), view, preload=preload)
        assert scheduler.run() == 0
    said = [log_of(tmp_path, name).strip() for name in "abc"]
    assert said == ["old", "changed", "changed"]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("assert preload.FLAG not in sys.argv", "the template has ended"),
        (
            "from threading import Timer; Timer(0.5, print).start()",
            "it has 2 threads, and no fork would be safe",
        ),
    ],
)
def test_without_a_sound_template_all_is_as_ever(
    tmp_path: Path, more: str, why: str
) -> None:
    code, said, _ = run(scripted(tmp_path, more))
    assert code == 0
    assert log_of(tmp_path, "a").strip() == "old"
    assert said.count("each run imports for itself") == said.count(why) == 1


def test_threads_that_end_at_a_fork_do_not_hinder(tmp_path: Path) -> None:
    """numpy's import starts a pool of as many threads as OpenBLAS may have."""
    more = "import numpy; said.TEXT += ' forked' * (preload.FLAG in sys.argv)"
    tasks = scripted(tmp_path, more, OPENBLAS_NUM_THREADS="2", OMP_NUM_THREADS="2")
    assert run(tasks)[0] == 0
    assert log_of(tmp_path, "a").strip() == "old forked"
