"""Turns on a device: the runs of one slot train one at a time while others prepare.

The runner gives the runs of a slot a common path in TURN, and each a number in RANK. Of
those that wait, the one of the lowest rank trains next. Four lock files lie there:

    .turn  held by the run that trains, from its first update to its last evaluation
    .line  of which a run that waits for .turn shares the byte of its rank
    .use   held by the run that needs the device to itself: the one that trains or,
           for seconds, one that times kernels while it prepares
    .wish  held by a run that waits for .use; the run that trains checks it between
           two updates, and releases .use for a while

They are POSIX record locks. The kernel frees them however their holder ends, and unlike
flock's they do not pass on to the helpers that a run forks. So nothing is left to clean
up after kill -9 of a run or of its runner.

A run that is started before its certificates have passed is given a file in GATE, which
the runner creates when they have: without it the run prepares, but does not train. If
the runner is killed, the file never appears.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

TURN = "KABLATE_TURN"  # the path; not set: the run has its device to itself
RANK = "KABLATE_RANK"  # a number from 0; not set: 0
GATE = "KABLATE_GATE"  # the path of a file; not set: the run may train at once
SHARE = "KABLATE_PREPARE_BYTES"  # GPU memory that a run may take before its turn
POLL = 0.02  # seconds between two looks at a lock
GIVE_WAY = 50  # times that a run finds the turn free and leaves it to a lower rank

# Called while waiting; raises to end the wait.
KeepWaiting = Callable[[], None]


class Turn:
    """Turn of a run among those of its slot; without a path it always has it."""

    def __init__(
        self, path: str = "", memory: int = 0, gate: str = "", rank: int = 0
    ) -> None:
        """memory: bytes of the GPU that it may take before its turn; 0: no limit.
        gate: a file without which it must not train. rank: its own, or 0."""
        self.is_shared, self.memory, self._rank = bool(path), memory, rank
        self._gate = Path(gate) if gate else None
        self.is_mine = not path
        self._files = {
            name: os.open(f"{path}.{name}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
            for name in (("turn", "line", "use", "wish") if path else ())
        }

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Turn:
        """The turn that the runner has named. Raises OSError."""
        memory, rank = (
            int(text) if text.isdecimal() else 0
            for text in (environ.get(SHARE, ""), environ.get(RANK, ""))
        )
        return cls(environ.get(TURN, ""), memory, environ.get(GATE, ""), rank)

    def take(self, keep_waiting: KeepWaiting) -> None:
        """Wait until this run may train: for its turn, and for the gate."""
        if not self.is_mine:
            self._stand_in_line(keep_waiting)
        while self._gate is not None and not self._gate.exists():
            keep_waiting()
            time.sleep(POLL)
        self._gate = None
        if not self.is_mine:
            self._wait("use", keep_waiting)
            self.is_mine = True

    def let_go(self) -> None:
        """Let the next run train."""
        if self.is_shared and self.is_mine:
            self._free("use")
            self._free("turn")
            self.is_mine = False

    @contextmanager
    def alone(self, keep_waiting: KeepWaiting) -> Iterator[None]:
        """Use the device alone for seconds; a run that trains waits."""
        if self.is_mine:
            yield
            return
        self._wait("wish", keep_waiting)
        try:
            self._wait("use", keep_waiting)
            yield
        finally:
            self._free("use")
            self._free("wish")

    def is_wished(self) -> bool:
        """Whether another run waits for the device while this one trains."""
        if not self.is_shared or not self.is_mine or not self._try("wish"):
            return self.is_shared and self.is_mine
        self._free("wish")
        return False

    def lend(self, keep_waiting: KeepWaiting) -> None:
        """Let the runs that wait for the device use it, and wait for them."""
        with self.lent(keep_waiting):
            self._wait("wish", keep_waiting)
            self._free("wish")

    @contextmanager
    def lent(self, keep_waiting: KeepWaiting) -> Iterator[None]:
        """Let other runs use our device during the block."""
        if not (self.is_shared and self.is_mine):
            yield
            return
        self._free("use")
        try:
            yield
        finally:
            self._wait("use", keep_waiting)

    # ---- locks ------------------------------------------------------------------

    def _stand_in_line(self, keep_waiting: KeepWaiting) -> None:
        """Wait for the turn, and give way to lower ranks for a while: a run that was
        stopped (SIGSTOP) stands in line, but takes no turn."""
        given_way = 0
        try:
            while True:
                self._try("line", fcntl.LOCK_SH, 1, self._rank)
                if self._try("turn"):
                    if given_way == GIVE_WAY or not self._is_preceded():
                        return
                    self._free("turn")
                    given_way += 1
                else:
                    given_way = 0
                keep_waiting()
                time.sleep(POLL)
        finally:
            self._free("line")

    def _is_preceded(self) -> bool:
        """Whether a run of a lower rank stands in line."""
        if not self._rank:  # a range of 0 bytes would be the whole file
            return False
        if not self._try("line", fcntl.LOCK_EX, self._rank):
            return True
        fcntl.lockf(self._files["line"], fcntl.LOCK_UN, self._rank)
        return False

    def _try(
        self, name: str, kind: int = fcntl.LOCK_EX, length: int = 0, start: int = 0
    ) -> bool:
        """Lock some bytes of a file, or all of it, unless another run has them."""
        try:
            fcntl.lockf(self._files[name], kind | fcntl.LOCK_NB, length, start)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _free(self, name: str) -> None:
        fcntl.lockf(self._files[name], fcntl.LOCK_UN)

    def _wait(self, name: str, keep_waiting: KeepWaiting) -> None:
        while not self._try(name):
            keep_waiting()
            time.sleep(POLL)


def turn_path(folder: Path, slot: int) -> str:
    """Where the lock files of a slot lie in a results folder."""
    return str(folder.absolute() / f".slot{slot}")
