"""Requests to end a training early: SIGTERM, SIGINT, or the runner's death."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from lib.jobs.linux_processes import is_alive
from lib.jobs.process import PARENT_PID
from lib.jobs.signals import handled

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
        """Take SIGTERM and SIGINT as requests within the block."""
        with handled(SIGNALS, self._note):
            yield self

    def _note(self, number: int) -> None:
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
