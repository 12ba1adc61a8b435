"""Run directories: atomic files, append-only records, locks, status.

A run directory is the only record of a run. So every file in it is either replaced as
a whole (written next to its target, flushed to disk, renamed) or append-only, one JSON
record per line. Readers accept an incomplete last line, left by a killed writer.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from lib.files import HALF_WRITTEN, hidden_name, open_to_append

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
)

STATUS_FILE = "status.json"
METRICS_FILE = "metrics.jsonl"
JOB_FILE = "job.json"
MANIFEST_FILE = "manifest.json"
GPU_FILE = "gpu.jsonl"
LOG_FILE = "train.log"
EXPORT_FILE = "model.safetensors"
RUN_LOCK = ".lock"
BAD_JSON = (ValueError, RecursionError)  # the latter: nested too deeply

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


class DiskFull(OSError):
    """No space (or quota) left; the file that was to be replaced is unchanged."""

    def __str__(self) -> str:
        return str(self.strerror)


class DamagedFile(ValueError):
    """A file that kablate did not write like this; the message says where."""


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


# ---- atomic files ---------------------------------------------------------------


def atomic_write_bytes(
    path: str | Path, data: bytes, *, make_folder: bool = True
) -> None:
    """Replace a file in one step: readers see the old content or the new.

    A link of that name is replaced, and its target left unchanged. make_folder: create
    missing parent folders. Raises DiskFull when there is no space; the old file is
    then unchanged and nothing is left next to it.
    """
    path = Path(path)
    with _disk_full_is_clear(path):
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        name = hidden_name(path)
        try:
            with open(name, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                name.unlink()
            raise
        fsync_directory(path.parent)


def atomic_write_text(path: str | Path, text: str, *, make_folder: bool = True) -> None:
    """As atomic_write_bytes, in UTF-8 with line ends as given."""
    atomic_write_bytes(path, text.encode("utf-8"), make_folder=make_folder)


def atomic_write_json(
    path: str | Path, value: object, *, make_folder: bool = True
) -> None:
    """As atomic_write_bytes; ValueError for NaN or infinity, which JSON lacks."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write_text(path, text + "\n", make_folder=make_folder)


def remove_leftovers(directory: str | Path) -> None:
    """Delete half-written files of killed writers; requires the run's lock."""
    for path in Path(directory).glob(".*.tmp"):
        if HALF_WRITTEN.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def fsync_directory(path: str | Path) -> None:
    """Make a rename or a new name in this directory survive a power failure."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:  # some network file systems have no such call
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(fd)


def read_json(path: str | Path) -> Any:
    """The value in a JSON file; DamagedFile, with the place, if it is not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except BAD_JSON as error:
        raise DamagedFile(f"{path}: not JSON ({error})") from error


@contextmanager
def _disk_full_is_clear(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            if str(error.filename).endswith(".tmp"):  # a name that users do not know
                raise OSError(error.errno, error.strerror, str(path)) from None
            raise
        text = f"no space left while writing {path}; its old content is unchanged"
        raise DiskFull(
            error.errno, f"{text}. Free some space and start again"
        ) from None


# ---- records, one a line --------------------------------------------------------


def append_jsonl(
    target: str | Path | IO[Any], record: Mapping[str, Any], *, sync: bool = False
) -> None:
    """Append one record as one line. NaN and infinity become null.

    target: a path, or a file open for appending (text or binary, flushed here).
    sync: also wait until the line is on disk. With a path, an incomplete last line of
    a killed writer is removed first, and DiskFull leaves no partial record.
    """
    line = json.dumps(finite(record), ensure_ascii=False, allow_nan=False) + "\n"
    if isinstance(target, str | Path):
        _append_line(Path(target), line.encode("utf-8"), sync)
        return
    with _disk_full_is_clear(Path(str(getattr(target, "name", "?")))):
        is_text = hasattr(target, "encoding")
        target.write(line if is_text else line.encode("utf-8"))
        target.flush()
        if sync:
            os.fsync(target.fileno())


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """All complete records; none without a file. An incomplete last line is ignored.

    Raises DamagedFile, with the line number, for a bad line anywhere else.
    """
    records = []
    for number, (_, record) in enumerate(lines := _read_lines(Path(path)), 1):
        if record is not None:
            records.append(record)
        elif number < len(lines):  # else a page of zeros after a power failure
            raise DamagedFile(f"{path}:{number}: not a JSON record; remove that line")
    return records


def drop_bad_lines(path: str | Path) -> list[str]:
    """Remove the lines that read_jsonl refuses, atomically; these with their numbers.

    The other records stay, byte for byte.
    """
    lines = _read_lines(Path(path))
    bad = [
        f"line {number}, {line[:60]!r}"
        for number, (line, record) in enumerate(lines, 1)
        if record is None and number < len(lines)
    ]
    if bad:
        kept = [line + b"\n" for line, record in lines if record is not None]
        atomic_write_bytes(path, b"".join(kept))
    return bad


def _read_lines(path: Path) -> list[tuple[bytes, dict[str, Any] | None]]:
    """The lines of a file, each with its record (None: not a record)."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows was never whole
    except FileNotFoundError:
        return []
    return [(line, _record_in(line)) for line in lines]


def _record_in(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except BAD_JSON:
        return None
    return record if isinstance(record, dict) else None


def truncate_metrics(path: str | Path, step: int) -> int:
    """Remove the records after update `step`, atomically; how many were removed.

    A resumed run writes them again. Records without a step stay.
    """
    path = Path(path)
    if not path.exists():
        return 0
    records = read_jsonl(path)
    kept = [record for record in records if record.get("step", step) <= step]
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept)
    if text.encode("utf-8") != path.read_bytes():
        atomic_write_text(path, text)
    return len(records) - len(kept)


def finite(value: Any) -> Any:
    """The same value with None for NaN and infinities, which JSON lacks."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _append_line(path: Path, line: bytes, sync: bool) -> None:
    with _disk_full_is_clear(path), open_to_append(path) as file:
        end = _end_of_whole_lines(file)
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, "short write")
            if sync:
                os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise


def _end_of_whole_lines(file: Any) -> int:
    """Remove what follows the last newline; the remaining length in bytes."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return 0
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return end
    file.seek(0)
    end = file.read().rfind(b"\n") + 1
    file.truncate(end)
    return end


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
    except DamagedFile as error:
        way_out = "rerun this run, which keeps its files aside"
        raise DamagedFile(f"{error}; {way_out}") from None
    return {**_NEW_STATUS, **found}


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
    the run's lock.

    A run that is starting has no lock yet, but a living runner. The status is read
    again where the run may have ended between reading it and checking the lock.
    """
    seen: dict[str, Any] = {}
    while (status := read_status(run_dir)) != seen:
        if status["status"] != "running" or is_locked(run_lock(run_dir)):
            return str(status["status"])
        seen = status
    return "running" if _is_starting(status) else "interrupted"


def _is_starting(status: Mapping[str, Any]) -> bool:
    """Whether a living process of this machine is starting the run."""
    if status["pid"] or not status["runner"] or status["host"] != socket.gethostname():
        return False
    try:
        os.kill(status["runner"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
