"""One task in one process: start it, monitor it, end it.

Knows run directories (lib/jobs/run_files.py) but nothing about what the process
computes. The child has its own session, so that a Ctrl-C in the terminal reaches only
the runner, which then asks its children to stop one by one.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from lib import atomic_files
from lib.files import open_to_append, safe_join
from lib.jobs import linux_processes, run_files
from lib.jobs.outcomes import Outcome, repair_status, settle
from lib.jobs.phases import PREPARING
from lib.jobs.pulse import Watchdog
from lib.jobs.run_log import RunProgress, rotate_log

# Environment variables of an attempt, which its child processes inherit.
MARK = "KABLATE_MARK"  # unique word that identifies them
ATTEMPT = "KABLATE_ATTEMPT"  # its number, from 1
LAST_END = "KABLATE_LAST_END"  # status/failure of the previous one
PARENT_PID = "KABLATE_PARENT_PID"  # process whose end is a request to stop


@dataclass(frozen=True, kw_only=True)
class Task:
    """One run, executed by one command.

    files: written into run_dir before each attempt (name -> text).
    cost: work relative to other tasks; for the order and for the time left.
    seconds: of training after which it ends, instead of max_steps.
    code: names what it compiles before it trains; "" if it compiles nothing.
    memory: bytes of GPU memory that it takes, 0 where that does not matter.
    round: tasks train after those of earlier rounds, where these are ready.
    avoid: GPUs as in Outcome.place, which an engine that assigns GPUs is not to use.
    """

    name: str
    command: tuple[str, ...]
    run_dir: Path
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    max_steps: int = 0
    cost: float = 1.0
    seconds: float = 0.0
    memory: float = 0.0
    code: str = ""
    round: int = 0
    avoid: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Seconds to wait: without progress before a run counts as hung (0: forever), for a
    stack dump, after SIGTERM to a hung process, after SIGTERM to a working one (it
    writes a checkpoint first), after SIGKILL (a driver may hold a process).

    preparing: without progress before the first update (0: as ``hang``); factor: times
    the longest preparation of an earlier run after which the scheduler sets it, to
    ``preparing_least`` seconds at least (0: never).
    """

    hang: float = 1800.0
    preparing: float = 0.0
    preparing_least: float = 600.0  # another arm may compile all of its code
    factor: float = 0.0
    dump: float = 2.0
    hung_end: float = 15.0
    stop: float = 300.0
    killed: float = 60.0


class Attempt:
    """A running child. Call poll() until it returns the Outcome."""

    begun = "started"

    def __init__(self, task: Task, slot: Mapping[str, str], patience: Patience) -> None:
        """Start the process; `slot` names its device and threads by environment.

        Raises OSError if it cannot be started, lib.atomic_files.DiskFull on a full
        disk.
        """
        self.task, self.patience = task, patience
        task.run_dir.mkdir(parents=True, exist_ok=True)
        before = run_files.read_status(task.run_dir)
        self.number = int(before["attempt"]) + 1
        for name, text in task.files.items():
            atomic_files.atomic_write_text(safe_join(task.run_dir, name), text)
        rotate_log(task.run_dir)
        run_files.write_status(
            task.run_dir,
            status="running",
            failure=None,
            message="",
            attempt=self.number,
            pid=0,
            runner=os.getpid(),
            host=socket.gethostname(),
            max_steps=task.max_steps or before["max_steps"],
            started=run_files.now(),
            result=None,
        )
        self.started = time.monotonic()
        self.progress = RunProgress(task.run_dir, task.max_steps, task.seconds)
        self._watch = Watchdog(task.run_dir, patience.hang)
        self._oom_kills = linux_processes.oom_kills()
        self._mark = secrets.token_hex(8)
        variables = {
            MARK: self._mark,
            ATTEMPT: str(self.number),
            LAST_END: f"{before['status']}/{before['failure']}",
        }
        try:
            self._process = _start(task, slot, variables)
        except OSError as error:
            repair_status(task.run_dir, self.number, "failed", "crash", str(error))
            raise
        self._reason: str | None = None
        self._why = ""
        self._killed_at: float | None = None
        self._steps: list[tuple[float, signal.Signals]] = []

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> Outcome | None:
        """The Outcome once the child has ended, with status.json in agreement. Call
        this often: time limits are enforced here."""
        now = time.monotonic()
        if self._has_ended():
            return self._end()
        killed = self._killed_at
        if killed is not None and now - killed > self.patience.killed:
            return self._give_up()
        if self._reason is None and (why := self._hung()):
            self._end_hung(f"{why}; stacks in its log")
        while self._steps and now >= self._steps[0][0]:
            self._signal(self._steps.pop(0)[1])
        return None

    def _hung(self) -> str:
        """Why the run counts as hung; "" if it does not."""
        why, limit = self._watch.hung(), self.patience.preparing
        if why or not limit or self._watch.silent <= limit:
            return why
        self.progress.read()
        if self.progress.stage(self.number) != PREPARING:
            return ""
        return f"still preparing: no progress for {limit:.0f} s, others took far less"

    def stop(self) -> None:
        """Request a checkpoint and exit; kill if that takes too long."""
        if self._reason is None:
            self._reason = "stop"
            now = time.monotonic()
            late = now + self.patience.stop
            self._steps = [(now, signal.SIGTERM), (late, signal.SIGKILL)]

    def kill(self) -> None:
        """Kill the child and its process group at once."""
        self._reason = self._reason or "stop"
        self._steps = []
        self._signal(signal.SIGKILL)

    def _end_hung(self, why: str) -> None:
        self._reason, self._why = "hang", why
        now = time.monotonic()
        end = now + self.patience.dump
        self._steps = [
            (now, signal.SIGUSR1),
            (end, signal.SIGTERM),
            (end + self.patience.hung_end, signal.SIGKILL),
        ]

    def _signal(self, number: signal.Signals) -> None:
        """SIGKILL goes to the child and all its helpers, some of which may lead
        sessions of their own. SIGTERM goes to the child only, which ends its helpers
        itself to write a checkpoint. SIGUSR1 goes to those that catch it, as it would
        end the others."""
        pids = {self.pid}
        if number != signal.SIGTERM:
            pids |= set(linux_processes.marked(MARK, self._mark))
        if number == signal.SIGUSR1:
            pids = {pid for pid in pids if linux_processes.catches(pid, number)} or {
                self.pid
            }
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        if number == signal.SIGKILL:
            self._killed_at = self._killed_at or time.monotonic()
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def _has_ended(self) -> bool:
        """Checked without reaping: as long as the leader is a zombie, its number is not
        reused, and the group can be signalled safely."""
        how = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pid, how) is not None

    def _end(self) -> Outcome:
        self._signal(signal.SIGKILL)  # helpers that outlived their leader
        return self._settle(self._process.wait())

    def _give_up(self) -> Outcome:
        """The Outcome while the process is still there. It never returns from the
        kernel, but holds the lock of its run."""
        self._reason = "hang"
        self._why = (
            f"process {self.pid} does not end {self.patience.killed:g} s after "
            "SIGKILL, as when its driver is stuck"
        )
        return replace(self._settle(-signal.SIGKILL), is_stuck=True)

    def _settle(self, code: int) -> Outcome:
        return settle(
            self.task.run_dir,
            self.number,
            self.progress,
            code=code,
            reason=self._reason,
            starved=linux_processes.oom_kills() > self._oom_kills,
            seconds=time.monotonic() - self.started,
            why=self._why,
        )


def _start(
    task: Task, slot: Mapping[str, str], about_attempt: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    runner = os.getpid()
    environ = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        **slot,
        **task.env,
        PARENT_PID: str(runner),
        **about_attempt,
    }
    with open_to_append(task.run_dir / run_files.LOG_FILE) as log:
        return subprocess.Popen(
            task.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environ,
            start_new_session=True,
            # Safe, because the runner has one thread.
            preexec_fn=lambda: linux_processes.end_with(runner),
        )
