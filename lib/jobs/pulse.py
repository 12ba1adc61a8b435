"""Signs of life of a run, and when it counts as hung.

There are two limits. A run has to show a sign, in its metrics, its status or a
statement, within a time that also allows for compiling and evaluating. A run that
trains states after each update within how many seconds the next one follows: so many
times the longest time between two points at which its device had done all updates, as
the host runs ahead between them; but at least LEAST. It withdraws that while it
evaluates, compares or saves. The statement is a small file that is overwritten in place
and never flushed, which takes microseconds.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lib.files import open_plain
from lib.jobs import run_files

PULSE_FILE = ".pulse"
LEAST = 300.0  # seconds: a disk or a network may be slow once
MEASURED = 3  # such times before a limit follows from the longest one
UNSEEN = 1.0  # seconds between two checks, at most; longer: we were stopped as well
_FORM = struct.Struct("=qd")  # number of the statement; seconds to an update, 0: none


class Pulse:
    """Statements of a run about itself; without a path nothing is written."""

    def __init__(
        self, path: Path | None = None, times: float = 0.0, least: float = LEAST
    ) -> None:
        """times: of the longest time so far until the next update; 0: no limit.
        Raises OSError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o644) if path and times else None
        self._times, self._least = times, least
        self._number = self._measured = 0
        self._longest = 0.0
        self._last = time.monotonic()  # when the device had done all updates

    def beat(self) -> None:
        """State that an update was made or queued, and that another follows."""
        self._state(self._limit)

    def measure(self) -> None:
        """Measure the time between two moments at which the device has done all."""
        now = time.monotonic()
        self._longest = max(self._longest, now - self._last)
        self._last = now
        self._measured += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """State that no update is to be expected during the block."""
        self._state(0.0)
        try:
            yield
        finally:
            self._last = time.monotonic()
            self._state(self._limit)

    @contextmanager
    def closing(self) -> Iterator[None]:
        """State after the block, however it ends, that no update is to be expected."""
        try:
            yield
        finally:
            self._state(0.0)
            if self._file is not None:
                os.close(self._file)
                self._file = None

    @property
    def _limit(self) -> float:
        if self._measured < MEASURED:
            return 0.0
        return max(self._least, self._times * self._longest)

    def _state(self, limit: float) -> None:
        if self._file is not None:
            self._number += 1
            with suppress(OSError):  # a full disk is noticed elsewhere
                os.pwrite(self._file, _FORM.pack(self._number, limit), 0)


class Watchdog:
    """Watches a run from the process that started it, on the same machine."""

    def __init__(self, run_dir: Path, timeout: float) -> None:
        """timeout: seconds without any sign, 0: no limit. Make it before the run
        starts: the statement of an earlier attempt is removed."""
        self._run_dir, self._timeout = run_dir, timeout
        (run_dir / PULSE_FILE).unlink(missing_ok=True)
        self._seen, self._stated = self._marks(), (0, 0.0)
        self._looked = time.monotonic()
        self.silent = self._late = 0.0  # seconds without any sign, without a statement

    def hung(self) -> str:
        """Why the run counts as hung; "" if it does not. Call this often: the time
        between two calls counts as UNSEEN at most, so that no run counts as hung after
        the machine or the runner was stopped for an hour."""
        now = time.monotonic()
        passed = min(now - self._looked, UNSEEN)
        self._looked = now
        seen, stated = self._marks(), statement(self._run_dir)
        is_new = stated != self._stated
        self._late = 0.0 if is_new else self._late + passed
        self.silent = 0.0 if is_new or seen != self._seen else self.silent + passed
        self._seen, self._stated = seen, stated
        if self._timeout and self.silent > self._timeout:
            return f"no progress for {self._timeout:g} s"
        if stated[1] and self._late > stated[1]:
            return f"no update for {stated[1]:.0f} s, far longer than any before"
        return ""

    def _marks(self) -> tuple[tuple[int, int], ...]:
        names = (run_files.METRICS_FILE, run_files.STATUS_FILE)
        return tuple(_mark(self._run_dir / name) for name in names)


def statement(run_dir: Path) -> tuple[int, float]:
    """Number and limit, in seconds, of a run's last statement; (0, 0) before any."""
    try:
        with open_plain(run_dir / PULSE_FILE) as file:
            number, limit = _FORM.unpack(file.read())
    except (OSError, struct.error):
        return 0, 0.0
    return number, limit


def _mark(path: Path) -> tuple[int, int]:
    try:
        info = path.stat()
        return info.st_mtime_ns, info.st_size
    except OSError:
        return 0, 0
