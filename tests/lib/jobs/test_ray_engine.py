"""lib/jobs/ray_engine.py and lib/jobs/ray_worker.py, which works for it on each
machine."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lib import atomic_files
from lib.jobs.outcomes import Outcome
from lib.jobs.phases import place_name
from lib.jobs.process import Task
from lib.jobs.ray_engine import fits, words
from lib.jobs.ray_worker import read_outcome, render_order
from lib.jobs.slots import no_gpu
from tests.lib.jobs.test_scheduler import QUICK, run, status_of, task
from tests.scratch import ROOT, until

ATTENDANT = ROOT / "lib" / "jobs" / "ray_worker.py"
HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(
    not HAS_RAY, reason="ray is not installed: make setup EXTRAS=ray"
)


# ---- the attendant, without Ray -------------------------------------------------


class Sent:
    """An attendant with its order."""

    def __init__(
        self, task: Task, parent: int = os.getpid(), shared: bool = True, **slot: str
    ) -> None:
        token = task.run_dir / ".token.0.tmp"
        if shared:
            atomic_files.atomic_write_text(token, "")
        self.process = subprocess.Popen(
            [sys.executable, str(ATTENDANT), str(parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(render_order(task, slot, QUICK, token))
        self.process.stdin.close()
        self.process.stdin = None

    def outcome(self) -> Outcome:
        said, _ = self.process.communicate()
        assert self.process.returncode == 0
        return read_outcome(said)


def begun(root: Path) -> bool:
    return len(atomic_files.read_jsonl(root / "a" / "metrics.jsonl")) > 2


def test_an_attendant_tells_what_the_runner_would_have_seen(tmp_path: Path) -> None:
    outcome = Sent(task(tmp_path, "a", steps=4), SLOT="x").outcome()
    assert (outcome.status, outcome.steps) == ("done", 4)
    assert status_of(tmp_path, "a") == ("done", None, 1)
    assert "in slot x" in (tmp_path / "a" / "train.log").read_text()
    outcome = Sent(task(tmp_path, "b", fail="crash", at=2)).outcome()
    assert (outcome.failure, outcome.exit_code) == ("crash", 1)
    assert outcome.log_tail[-1] == "KeyError: 'the cause'"
    missing = Task(name="c", command=("/no/such/program",), run_dir=tmp_path / "c")
    assert "/no/such/program" in Sent(missing).outcome().message


def test_a_second_signal_kills(tmp_path: Path) -> None:
    sent = Sent(task(tmp_path, "a", steps=100_000, sleep=0.02, saving=300))
    until(lambda: begun(tmp_path))
    sent.process.send_signal(signal.SIGTERM)
    until((tmp_path / "a" / "saving").exists)
    sent.process.send_signal(signal.SIGTERM)
    outcome = sent.outcome()
    assert outcome.status == status_of(tmp_path, "a")[0] == "interrupted"
    assert outcome.exit_code == -signal.SIGKILL
    assert atomic_files.read_json(tmp_path / "a" / "ckpt.json")["step"] > 2


def test_it_stops_when_its_parent_is_gone(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    sent = Sent(task(tmp_path, "a", steps=100_000, sleep=0.02), parent=gone.pid)
    assert sent.outcome().status == "interrupted"


def test_a_run_on_another_disk_is_refused(tmp_path: Path) -> None:
    outcome = Sent(task(tmp_path, "a"), shared=False).outcome()
    assert outcome.failure == "crash" and "the same results folder" in outcome.message
    assert not (tmp_path / "a").exists()


def test_gpus_are_promised_to_a_run_as_ray_gave_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    names = ("KABLATE_GPUS", "CUDA_VISIBLE_DEVICES")
    code = f"import os; print([os.environ.get(name) for name in {names}])"
    command = (sys.executable, "-c", code)
    for name, slot, seen in (
        ("gpu", {}, ["2,3", "2,3"]),
        ("cpu", no_gpu(), [None, ""]),
    ):
        place = tmp_path / name
        Sent(Task(name="a", command=command, run_dir=place), **slot).outcome()
        assert (place / "train.log").read_text() == f"{seen}\n"


def test_nothing_runs_on_a_gpu_to_avoid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attendant keeps the GPU until it is asked to end, and says so meanwhile."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    avoiding = replace(task(tmp_path, "a"), avoid=(place_name("2"),))
    sent = Sent(avoiding)
    until(lambda: not list((tmp_path / "a").glob(".token.*")))
    assert sent.process.poll() is None
    sent.process.terminate()
    outcome = sent.outcome()
    assert (outcome.status, outcome.place) == ("interrupted", place_name("2"))
    assert status_of(tmp_path, "a") == ("planned", None, 0)
    elsewhere = replace(avoiding, avoid=(place_name("3"),))
    outcome = Sent(elsewhere).outcome()
    assert (outcome.status, outcome.place) == ("done", place_name("2"))


# ---- what needs no cluster ------------------------------------------------------


def test_a_machine_fits_or_not() -> None:
    machine = {"CPU": 8.0, "GPU": 2.0, "memory": 1e9}
    assert fits(machine, {"CPU": 8.0, "GPU": 2.0})
    assert not fits(machine, {"CPU": 1.0, "GPU": 3.0})
    assert not fits({"CPU": 8.0}, {"CPU": 1.0, "GPU": 1.0})
    assert fits({"CPU": 1.0}, {"CPU": 1.0, "GPU": 0.0})
    assert words(machine) == "8 CPU, 2 GPU" and words({"CPU": 0.5}) == "0.5 CPU, 0 GPU"


# ---- with Ray -------------------------------------------------------------------

RUNNER = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from lib.jobs.ray_engine import Cluster
from tests.lib.jobs.test_ray_engine import failing
from tests.lib.jobs.test_scheduler import run
cluster = Cluster("local")
cluster.require(cpus=1, gpus=0)
print(run(failing(Path({place!r})), slots=({{}}, {{}}), launch=cluster.launch)[1])
"""


def failing(root: Path) -> list[Task]:
    """One task for each way to end."""
    return [
        task(root, "done"),
        task(root, "crash", fail="crash"),
        task(root, "late-crash", steps=4, fail="crash", at=4, first=1),
        task(root, "nan", fail="nan", at=2),
        task(root, "oom", fail="says-oom"),
        task(root, "starved", steps=6, at=5, fail="starved", first=2),
        task(root, "kill", steps=7, fail="kill", at=6, first=2),
        task(root, "interrupted", fail="interrupted"),
        task(root, "hang", steps=8, at=7, fail="hang", first=1, pulse=1.0),
        task(root, "device", fail="device", first=1),
    ]


@needs_ray
@pytest.mark.slow
def test_both_engines_classify_and_retry_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    _, said, _ = run(failing(here))
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray keeps a token
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    code = RUNNER.format(root=str(ROOT), place=str(there))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for each in failing(here):
        assert status_of(there, each.name) == status_of(here, each.name)
    ends = [line for line in said.splitlines() if "FAILED" in line]
    assert sorted(ends) == sorted(
        line for line in done.stdout.splitlines() if "FAILED" in line
    )
