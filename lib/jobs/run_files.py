"""Run directories: names of their files, lock, status. See also lib/atomic_files.py."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lib.atomic_files import DamagedFile, atomic_write_json, finite, read_json
from lib.jobs.linux_processes import is_alive

SCHEMA = 1
STATUSES = ("planned", "running", "done", "failed", "oom", "interrupted")
FAILURES = (
    None,
    "crash",
    "nan",
    "oom",
    "killed",
    "hang",
    "disk",
    "certificate",
    "gradients",
    "device",
)

STATUS_FILE = "status.json"
METRICS_FILE = "metrics.jsonl"
JOB_FILE = "job.json"
MANIFEST_FILE = "manifest.json"
GPU_FILE = "gpu.jsonl"
LOG_FILE = "train.log"
EXPORT_FILE = "model.safetensors"
SAMPLES_FILE = "samples.json"  # texts of the trained model
RUN_LOCK = ".lock"
EARLY_FILE = ".early"  # in a run that prepares while its steps are still verified

_NEW_STATUS: dict[str, Any] = {
    "schema": SCHEMA,
    "status": "planned",
    "failure": None,
    "message": "",
    "step": 0,
    "max_steps": 0,
    "attempt": 0,
    "pid": 0,  # of the process that trains; 0 until it has taken the lock
    "runner": 0,  # of the process that starts it, on the same host
    "host": "",
    "started": None,
    "updated": None,
    "result": None,
    "alarms": [],  # suspicious losses so far: step, alarm, message
}


class LockHeld(RuntimeError):
    """Another process holds the lock: host, pid and since (None: unknown)."""

    def __init__(
        self, path: Path, host: str | None, pid: int | None, since: str | None
    ) -> None:
        self.path, self.host, self.pid, self.since = path, host, pid, since
        who = f"pid {pid} on {host} since {since}" if pid else "an unknown process"
        super().__init__(f"{path.parent} is in use by {who} (lock file {path})")


def now() -> str:
    """The current time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


# ---- locks ----------------------------------------------------------------------


@contextmanager
def lock(path: str | Path, timeout: float = 1.0) -> Iterator[None]:
    """Hold an exclusive lock on the file; the kernel releases it if we die.

    timeout: seconds to wait (the default is longer than a check by is_locked).
    Raises LockHeld, which names the holder as recorded next to the lock.
    """
    from filelock import FileLock, Timeout

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(path, timeout=timeout)
    try:
        held.acquire(poll_interval=0.05)
    except Timeout:
        raise lock_held(path) from None
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": now()}
    try:
        atomic_write_json(holder_file(path), holder)
        yield
    finally:
        with suppress(OSError):
            holder_file(path).unlink()
        held.release()


def is_locked(path: str | Path) -> bool:
    """Whether a living process holds the lock at this moment.

    Checked by a shared lock on a file open for reading, so that readers do not block
    each other, and a folder that is read-only or of another user can be checked.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # it may be a stranger's pipe
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    finally:
        os.close(fd)
    return False


def lock_held(path: str | Path) -> LockHeld:
    """The error that names the holder of this lock, as far as recorded."""
    path = Path(path)
    try:
        holder = read_json(holder_file(path))
        return LockHeld(path, holder["host"], holder["pid"], holder["since"])
    except (OSError, ValueError, KeyError, TypeError):
        return LockHeld(path, None, None, None)


def holder_file(path: str | Path) -> Path:
    """The file in which the holder of a lock identifies itself."""
    return Path(f"{path}.holder.json")


def run_lock(run_dir: str | Path) -> Path:
    """The lock file of a run: the trainer holds it while it may write there."""
    return Path(run_dir) / RUN_LOCK


# ---- status ---------------------------------------------------------------------


def read_status(run_dir: str | Path) -> dict[str, Any]:
    """status.json with every field of the schema; "planned" where there is none."""
    path = Path(run_dir) / STATUS_FILE
    if not path.exists():
        return dict(_NEW_STATUS)
    try:
        found = read_json(path)
        if not isinstance(found, dict) or found.get("status") not in STATUSES:
            raise DamagedFile(f"{path}: not a status file (no known status in it)")
        for name in _NEW_STATUS.keys() & found.keys():
            if not _is_usable(name, found[name]):
                raise DamagedFile(f"{path}: not a status file ({name} is of no use)")
    except DamagedFile as error:
        way_out = "rerun this run, which keeps its files aside"
        raise DamagedFile(f"{error}; {way_out}") from None
    return {**_NEW_STATUS, **found}


def _is_usable(name: str, value: Any) -> bool:
    """Whether a value is of the kind that this field of status.json has."""
    new = _NEW_STATUS[name]
    if name == "alarms":
        return isinstance(value, list) and all(
            isinstance(alarm, dict) and {"step", "message"} <= alarm.keys()
            for alarm in value
        )
    if isinstance(new, int):  # a number of updates, attempts or a process
        return type(value) is int and 0 <= value < 2**31
    kind = dict if name == "result" else str
    return isinstance(value, kind) or (value is None and new is None)


def write_status(run_dir: str | Path, **changes: Any) -> dict[str, Any]:
    """Change fields of status.json, atomically; the whole new status.

    Fields not named keep their value; `updated` is set here. Raises ValueError for
    an unknown field, status or failure class, and FileNotFoundError without a run
    directory: one that was removed must not come back with only this file in it.
    """
    unknown = changes.keys() - _NEW_STATUS.keys()
    if unknown:
        raise ValueError(f"status.json has no field {', '.join(sorted(unknown))}")
    status = {**read_status(run_dir), **finite(changes), "updated": now()}
    if status["status"] not in STATUSES:
        raise ValueError(f"status {status['status']!r}: allowed are {STATUSES}")
    if status["failure"] not in FAILURES:
        raise ValueError(f"failure {status['failure']!r}: allowed are {FAILURES}")
    atomic_write_json(Path(run_dir) / STATUS_FILE, status, make_folder=False)
    return status


def effective_status(run_dir: str | Path) -> str:
    """The actual status: "running" becomes "interrupted" if no living process holds
    the run's lock, and "planned" if it was not yet allowed to train.

    A run that is starting has no lock yet, but a living runner. The status is read
    again where the run may have ended between reading it and checking the lock.
    """
    seen: dict[str, Any] = {}
    while (status := read_status(run_dir)) != seen:
        word = str(status["status"])
        if word != "running" or is_locked(run_lock(run_dir)):
            break
        seen = status
    else:
        word = "running" if _is_starting(status) else "interrupted"
    is_early = word == "interrupted" and (Path(run_dir) / EARLY_FILE).exists()
    return "planned" if is_early else word


def only_prepared(run_dir: str | Path) -> bool:
    """Whether the run ended before it was allowed to train, as when its runner is
    killed while the steps are verified."""
    with suppress(OSError, ValueError):
        early = (Path(run_dir) / EARLY_FILE).exists()
        return early and effective_status(run_dir) == "planned"
    return False


def remove_run(run_dir: Path) -> None:
    """Remove a run directory, and the folders above it that are empty then."""
    shutil.rmtree(run_dir, ignore_errors=True)
    with suppress(OSError):  # the first that is not empty
        for folder in run_dir.parents:
            folder.rmdir()


def _is_starting(status: Mapping[str, Any]) -> bool:
    """Whether a living process of this machine is starting the run."""
    if status["pid"] or not status["runner"] or status["host"] != socket.gethostname():
        return False
    return is_alive(status["runner"])
