"""Outcome of an attempt: done, interrupted or which class of failure.

Decided by the exit code and by the status that the process has left, which are made to
agree.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.atomic_files import DiskFull
from lib.jobs import run_files
from lib.jobs.run_log import Pace, RunProgress, log_tail
from lib.output import (
    EXIT_DEVICE,
    EXIT_DISK,
    EXIT_GRADIENTS,
    EXIT_INTERRUPTED,
    EXIT_NAN,
    EXIT_OK,
    EXIT_OOM,
)

_BY_EXIT_CODE = {
    EXIT_INTERRUPTED: ("interrupted", None),
    EXIT_OOM: ("oom", "oom"),
    EXIT_NAN: ("failed", "nan"),
    EXIT_DISK: ("failed", "disk"),
    EXIT_GRADIENTS: ("failed", "gradients"),
    EXIT_DEVICE: ("failed", "device"),
}
_ASKED_TO_END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Outcome of an attempt. steps: updates of this attempt. val_loss: of the last
    evaluation on record, which may be newer than the last refresh. is_stuck: its
    process does not end. place: "host:0,1", if its engine has assigned the GPUs."""

    status: str  # done, failed, oom, interrupted
    failure: str | None = None
    message: str = ""
    exit_code: int | None = None
    seconds: float = 0.0
    steps: int = 0
    pace: Pace | None = None
    val_loss: float | None = None
    log_tail: tuple[str, ...] = ()
    is_stuck: bool = False
    place: str = ""


def settle(
    run_dir: Path,
    attempt: int,
    progress: RunProgress,
    *,
    code: int,
    reason: str | None,
    starved: bool,
    seconds: float,
    why: str = "",
) -> Outcome:
    """The Outcome of an attempt that has ended; status.json is made to agree.

    code, reason, starved: as for classify. why: replaces the process's own message of
    a failure.
    """
    left = status_or_nothing(run_dir)
    status, failure, message = classify(code, left, attempt, reason, starved)
    tail = log_tail(run_dir / run_files.LOG_FILE)
    if failure and why:
        message = why
    elif failure and not message:
        message = f"exit code {code}" + (f": {tail[-1]}" if tail else "")
    progress.read()
    stated = tuple(left.get(name) for name in ("status", "failure", "message"))
    if not run_dir.is_dir():
        message = f"{run_dir} was removed or moved while the run was active"
    elif stated != (status, failure, message):
        repair_status(run_dir, attempt, status, failure, message)
    return Outcome(
        status=status,
        failure=failure,
        message=message,
        exit_code=code,
        seconds=seconds,
        steps=progress.own_steps,
        pace=progress.pace,
        val_loss=progress.val_loss,
        log_tail=tail,
    )


def never_started(error: OSError | ValueError) -> Outcome:
    """The Outcome of an attempt that could not be started."""
    failure = "disk" if isinstance(error, DiskFull) else "crash"
    return Outcome(status="failed", failure=failure, message=str(error))


def classify(
    code: int,
    left: Mapping[str, Any],
    attempt: int,
    reason: str | None,
    starved: bool = False,
) -> tuple[str, str | None, str]:
    """(status, failure, message) of an ended process.

    code: as subprocess gives it, negative for a signal. left: its status.json (empty:
    unreadable). reason: why we ended it ("stop", "hang"), None if we did not.
    starved: whether the kernel has killed a process for lack of memory since then. The
    status is "oom" only if the process itself gave up; "failed" with the failure "oom"
    can be retried with less memory.
    """
    message = str(left.get("message") or "")
    if code == EXIT_OK:
        if left.get("status") == "done":
            return "done", None, message
        return "failed", "crash", "it ended with exit code 0 without being done"
    if reason == "hang":
        return "failed", "hang", message
    own = left.get("attempt") == attempt and left.get("status") != "running"
    cause = left.get("failure") if own else None
    if code in _BY_EXIT_CODE:
        status, failure = _BY_EXIT_CODE[code]
        if own and cause == failure:  # one of several ranks: a retry may use less
            status = str(left["status"])
        return status, failure, message
    unclear = code == -signal.SIGKILL or cause in (None, "crash")
    if starved and reason is None and unclear:
        return "failed", "oom", "killed by the kernel for lack of memory"
    if code < 0:
        return _by_signal(-code, reason)
    # a launcher in between may hide the exit code
    if own and (cause or left.get("status") == "interrupted"):
        return str(left["status"]), cause, message
    return "failed", "crash", message


def _by_signal(number: int, reason: str | None) -> tuple[str, str | None, str]:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if reason == "stop" or number in _ASKED_TO_END:
        return "interrupted", None, f"ended by {name}"
    if number == signal.SIGKILL:
        text = "by hand, or by the kernel for lack of memory"
        return "failed", "killed", f"killed by {name}: {text}"
    return "failed", "crash", f"ended by {name}"


def status_or_nothing(run_dir: Path) -> dict[str, Any]:
    """Contents of status.json (run_files.read_status); {} if it cannot be read."""
    try:
        return run_files.read_status(run_dir)
    except (OSError, ValueError):
        return {}


def repair_status(
    run_dir: Path, attempt: int, status: str, failure: str | None, message: str
) -> None:
    """Write the status that the child could not write itself."""
    if not status_or_nothing(run_dir):
        (run_dir / run_files.STATUS_FILE).unlink(missing_ok=True)
    fields = {"status": status, "failure": failure, "message": message}
    run_files.write_status(run_dir, attempt=attempt, **fields)
