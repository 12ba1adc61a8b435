"""lib/jobs/run_files.py: locks and status; real processes."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import pytest

from lib import atomic_files
from lib.jobs import run_files
from tests.lib.processes import end, first_line, start
from tests.scratch import PATIENT

# ---- locks ----------------------------------------------------------------------

HOLDER = """
import sys, time
from lib.jobs.run_files import lock
with lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_says_who_holds_it_and_dies_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    assert not run_files.is_locked(path) and not path.exists()
    holder = start(HOLDER, path)
    assert first_line(holder) == "held"
    assert run_files.is_locked(path)
    held = pytest.raises(run_files.LockHeld, match=f"pid {holder.pid} on ")
    with held as caught, run_files.lock(path, timeout=0.1):
        pass
    assert caught.value.pid == holder.pid and caught.value.since is not None
    end(holder)
    assert run_files.holder_file(path).exists()  # stale, and of no consequence
    assert not run_files.is_locked(path)
    with run_files.lock(path):
        assert atomic_files.read_json(run_files.holder_file(path))["pid"] == os.getpid()
        assert run_files.is_locked(path)
    assert not run_files.is_locked(path) and not run_files.holder_file(path).exists()


def test_a_waiting_lock_gets_it_when_the_holder_goes(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    holder = start(HOLDER, path)
    assert first_line(holder) == "held"
    waiter = start(
        "import sys; from lib.jobs.run_files import lock\n"
        "print('waiting', flush=True)\n"
        "with lock(sys.argv[1], timeout=600): print('mine', flush=True)",
        path,
    )
    assert first_line(waiter) == "waiting"
    end(holder)
    assert first_line(waiter) == "mine"
    waiter.communicate()
    assert waiter.returncode == 0


def test_looking_at_a_lock_does_not_make_a_starter_fail(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.touch()
    watcher = start(
        "import sys; from lib.jobs.run_files import is_locked\n"
        "print('on', flush=True)\n"
        "while True: is_locked(sys.argv[1])",
        path,
    )
    assert first_line(watcher) == "on"
    for _ in range(20):
        with run_files.lock(path, timeout=PATIENT):
            pass
    assert not any(run_files.is_locked(path) for _ in range(5000))
    end(watcher)


def test_a_lock_that_cannot_be_written_can_be_looked_at() -> None:
    busy = Path(sys.executable).resolve()  # not even by root, while it runs
    assert not run_files.is_locked(busy)


# ---- status ---------------------------------------------------------------------


def test_status_changes_keep_the_other_fields(tmp_path: Path) -> None:
    assert run_files.read_status(tmp_path)["status"] == "planned"
    run_files.write_status(tmp_path, status="running", attempt=2, max_steps=50, pid=7)
    run_files.write_status(tmp_path, step=10, result={"val_loss": float("nan")})
    found = run_files.read_status(tmp_path)
    assert (found["status"], found["attempt"], found["step"]) == ("running", 2, 10)
    assert found["result"] == {"val_loss": None} and found["updated"]
    for bad in ({"status": "dead"}, {"failure": "bad luck"}, {"stp": 1}):
        with pytest.raises(ValueError):
            run_files.write_status(tmp_path, **bad)
    assert run_files.read_status(tmp_path) == found


def test_a_status_does_not_bring_back_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run_files.write_status(tmp_path / "gone", step=7)
    assert not (tmp_path / "gone").exists()


def test_running_without_a_holder_is_interrupted(tmp_path: Path) -> None:
    run_files.write_status(tmp_path, status="running")
    assert run_files.effective_status(tmp_path) == "interrupted"
    holder = start(HOLDER, run_files.run_lock(tmp_path))
    assert first_line(holder) == "held"
    assert run_files.effective_status(tmp_path) == "running"
    end(holder)
    assert run_files.effective_status(tmp_path) == "interrupted"
    run_files.write_status(tmp_path, status="done")
    assert run_files.effective_status(tmp_path) == "done"


def test_a_run_that_is_being_started_is_running(tmp_path: Path) -> None:
    """Before its process has imported everything and takes the lock."""
    here, runner = socket.gethostname(), start("import time; time.sleep(60)")
    run_files.write_status(tmp_path, status="running", runner=runner.pid, host=here)
    assert run_files.effective_status(tmp_path) == "running"
    run_files.write_status(tmp_path, host="elsewhere")
    assert run_files.effective_status(tmp_path) == "interrupted"
    run_files.write_status(tmp_path, host=here, pid=1)  # it had begun, and is gone
    assert run_files.effective_status(tmp_path) == "interrupted"
    run_files.write_status(tmp_path, pid=0)
    end(runner)
    assert run_files.effective_status(tmp_path) == "interrupted"


def test_a_run_that_ends_between_two_looks_is_not_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its status is read while it runs, its lock after it has ended."""
    run_files.write_status(tmp_path, status="running")
    look = run_files.is_locked

    def ends(path: Path) -> bool:
        run_files.write_status(tmp_path, status="done")
        return look(path)

    monkeypatch.setattr(run_files, "is_locked", ends)
    assert run_files.effective_status(tmp_path) == "done"


def test_a_damaged_status_is_an_error_that_names_it(tmp_path: Path) -> None:
    fields: dict[str, object] = {
        **{"alarms": ["x"], "step": "1e3", "attempt": None, "pid": 10**12, "host": 3},
        **{"result": "none", "message": None, "max_steps": True, "started": {}},
    }
    wrong = [json.dumps({"status": "done", name: fields[name]}) for name in fields]
    for text in ("", "[]", '{"status": "fine"}', '{"stat', *wrong):
        (tmp_path / "status.json").write_text(text)
        with pytest.raises(
            atomic_files.DamagedFile, match="status.json: not .*rerun this run"
        ):
            run_files.read_status(tmp_path)
