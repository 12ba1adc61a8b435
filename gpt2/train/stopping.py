"""Requests to end a training early: SIGTERM, SIGINT, or the runner's death."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from lib.jobs.process import PARENT_PID

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether the run was asked to end; a signal only leaves a note here."""

    def __init__(self, parent: int | None = None) -> None:
        """parent: a process; its end also counts as a request (None: no process)."""
        self._parent = parent
        self._is_direct = parent == os.getppid()
        self._signal: int | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> StopRequest:
        """A request that watches the runner named by PARENT_PID of lib.jobs.process."""
        text = environ.get(PARENT_PID, "")
        return cls(int(text) if text.isdecimal() else None)

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Catch the signals; those that are ignored (nohup) stay ignored."""
        before = {s: signal.getsignal(s) for s in SIGNALS}
        caught = [s for s in SIGNALS if before[s] != signal.SIG_IGN]
        for number in caught:
            signal.signal(number, self._note)
        try:
            yield self
        finally:
            for number in caught:
                signal.signal(number, before[number])

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    def reason(self) -> str | None:
        """Why to stop now, or None."""
        if self._signal is not None:
            return signal.Signals(self._signal).name
        if self._parent is not None and not self._parent_lives(self._parent):
            return f"the runner (pid {self._parent}) is gone"
        return None

    def _parent_lives(self, parent: int) -> bool:
        # A dead parent may stay a zombie for long, with its number still taken;
        # its own children, though, see another parent at once.
        return os.getppid() == parent if self._is_direct else is_alive(parent)


def is_alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True  # no /proc here
    return state not in "ZX"
