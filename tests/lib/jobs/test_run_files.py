"""lib/jobs/run_files.py: atomic files, records, locks, status; real processes."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lib.jobs import run_files

ROOT = Path(__file__).resolve().parents[3]


def start(code: str, *args: object) -> subprocess.Popen[str]:
    """A python process that can import lib and prints to a pipe."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str], how: int = signal.SIGKILL) -> None:
    process.send_signal(how)
    process.communicate(timeout=30)


# ---- atomic files ---------------------------------------------------------------


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    code = """
import sys
from lib.jobs.run_files import atomic_write_json
value = 0
while True:
    value += 1
    atomic_write_json(sys.argv[1], {"n": value, "pad": [value] * 3000})
    if value == 1:
        print("go", flush=True)
"""
    writer = start(code, path)
    assert first_line(writer) == "go"
    for _ in range(200):
        found = json.loads(path.read_text())
        assert set(found["pad"]) == {found["n"]}
    end(writer)
    assert json.loads(path.read_text())["n"] >= 1
    run_files.remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


def test_atomic_write_obeys_the_umask_and_makes_parents(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.txt"
    run_files.atomic_write_text(path, "h\u00e9\n")
    plain = tmp_path / "plain"
    plain.write_text("")
    assert path.read_bytes() == "h\u00e9\n".encode()
    assert path.stat().st_mode == plain.stat().st_mode


def test_nan_is_refused_and_the_old_file_stands(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    run_files.atomic_write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        run_files.atomic_write_json(path, {"a": float("nan")})
    assert run_files.read_json(path) == {"a": 1}


def test_read_json_names_the_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": ')
    with pytest.raises(run_files.DamagedFile, match="x.json"):
        run_files.read_json(path)


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 64 KiB, where this user may mount one."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if done.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_an_error_names_the_file_that_was_to_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (Path("/proc/below/x.json"), tmp_path / "folder"):
        with pytest.raises(OSError, match=f"] [A-Z][a-z ]+: '{path}'$|'/proc/below'$"):
            run_files.atomic_write_bytes(path, b"x")


def test_a_full_disk_is_said_and_damages_nothing(small_disk: Path) -> None:
    path = small_disk / "model.bin"
    run_files.atomic_write_bytes(path, b"old" * 100)
    with pytest.raises(run_files.DiskFull, match="^no space left.*model.bin") as caught:
        run_files.atomic_write_bytes(path, b"new" * 100_000)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old" * 100
    assert [p.name for p in small_disk.iterdir()] == ["model.bin"]


def test_metrics_on_a_full_disk_keep_every_whole_record(small_disk: Path) -> None:
    path = small_disk / "metrics.jsonl"
    written = 0
    with pytest.raises(run_files.DiskFull):
        while True:
            run_files.append_jsonl(path, {"step": written, "pad": "x" * 3000})
            written += 1
    assert written > 5
    assert [r["step"] for r in run_files.read_jsonl(path)] == list(range(written))
    assert path.read_bytes().endswith(b"\n")


def test_no_space_while_appending_is_a_clear_error() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    full = pytest.raises(run_files.DiskFull, match="no space left")
    with open("/dev/full", "ab", buffering=0) as file, full:
        run_files.append_jsonl(file, {"step": 1})


# ---- records --------------------------------------------------------------------


def test_a_torn_last_line_is_ignored_and_then_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in range(3):
        run_files.append_jsonl(path, {"kind": "train", "step": step})
    with open(path, "ab") as file:
        file.write(b'{"kind": "train", "st')
    assert [r["step"] for r in run_files.read_jsonl(path)] == [0, 1, 2]
    run_files.append_jsonl(path, {"kind": "train", "step": 3})
    assert [r["step"] for r in run_files.read_jsonl(path)] == [0, 1, 2, 3]


def test_a_torn_only_line_is_ignored_and_then_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}')  # whole JSON, but its newline is missing
    assert run_files.read_jsonl(path) == []
    run_files.append_jsonl(path, {"step": 2})
    assert run_files.read_jsonl(path) == [{"step": 2}]


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for line in (b'{"st', 100_000 * b"["):
        path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
        with pytest.raises(run_files.DamagedFile, match="metrics.jsonl:2"):
            run_files.read_jsonl(path)


def test_bad_lines_are_dropped_and_named_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = [b'{"step": 1,  "loss": 0.1}', b'{"step": 3}', b'{"step": 4}']
    path.write_bytes(b"\n".join([good[0], b'{"st', b"7", *good[1:], b'{"torn']))
    assert run_files.drop_bad_lines(path) == ["line 2, b'{\"st'", "line 3, b'7'"]
    assert path.read_bytes() == b"\n".join([*good, b""])
    before = path.stat().st_ino
    assert run_files.drop_bad_lines(path) == [] and path.stat().st_ino == before
    assert run_files.drop_bad_lines(tmp_path / "none") == []


@pytest.mark.parametrize("text", ["", "{", 100_000 * "[", 5_000 * "9"])
def test_what_is_no_json_is_told_with_its_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "status.json"
    path.write_text(text)
    with pytest.raises(run_files.DamagedFile, match="status.json: not JSON"):
        run_files.read_json(path)


def test_records_to_an_open_file_and_nan_as_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with open(path, "a") as text:
        run_files.append_jsonl(text, {"loss": float("inf")}, sync=True)
    with open(path, "ab") as binary:
        run_files.append_jsonl(binary, {"loss": [float("nan"), 1.5]})
    assert run_files.read_jsonl(path) == [{"loss": None}, {"loss": [None, 1.5]}]


def test_killed_writers_leave_only_whole_records(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    code = """
import sys
from lib.jobs.run_files import append_jsonl, read_jsonl
step = len(read_jsonl(sys.argv[1]))
while True:
    append_jsonl(sys.argv[1], {"step": step, "pad": "x" * 500})
    step += 1
    if step % 20 == 0:
        print(step, flush=True)
"""
    for _ in range(3):
        writer = start(code, path)
        first_line(writer)
        end(writer)
    steps = [record["step"] for record in run_files.read_jsonl(path)]
    assert steps == list(range(len(steps))) and len(steps) >= 60


def test_truncate_metrics_drops_what_comes_after_the_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    run_files.append_jsonl(path, {"kind": "note"})
    for step in range(1, 6):
        run_files.append_jsonl(path, {"kind": "train", "step": step, "loss": 0.1})
    before = path.read_bytes()
    assert run_files.truncate_metrics(path, 5) == 0 and path.read_bytes() == before
    with open(path, "ab") as file:
        file.write(b'{"torn')
    assert run_files.truncate_metrics(path, 3) == 2
    records = run_files.read_jsonl(path)
    assert [r.get("step") for r in records] == [None, 1, 2, 3]
    assert path.read_bytes() == b"".join(before.splitlines(True)[:4])
    assert run_files.truncate_metrics(tmp_path / "none.jsonl", 3) == 0


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
        assert run_files.read_json(run_files.holder_file(path))["pid"] == os.getpid()
        assert run_files.is_locked(path)
    assert not run_files.is_locked(path) and not run_files.holder_file(path).exists()


def test_a_waiting_lock_gets_it_when_the_holder_goes(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    holder = start(HOLDER, path)
    assert first_line(holder) == "held"
    waiter = start(
        "import sys; from lib.jobs.run_files import lock\n"
        "print('waiting', flush=True)\n"
        "with lock(sys.argv[1], timeout=60): print('mine', flush=True)",
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
        with run_files.lock(path, timeout=20):
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
    for text in ("", "[]", '{"status": "fine"}', '{"stat'):
        (tmp_path / "status.json").write_text(text)
        with pytest.raises(
            run_files.DamagedFile, match="status.json: not .*rerun this run"
        ):
            run_files.read_status(tmp_path)
