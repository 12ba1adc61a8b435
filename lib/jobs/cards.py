"""Failures of GPUs, and which GPUs are out of use because of them.

A GPU that breaks every run within seconds would otherwise get the whole queue. After
STRIKES attempts in a row that end by errors of a GPU or hang there, it gets no more
runs. In a row means that no run was finished there in between; attempts that were there
together when one of them failed and that fail within TOGETHER seconds count as one. A
GPU with a process that even SIGKILL does not end is out of use at once. GPUs are named
as in lib/jobs/slots.py; a slot without one ("") is never out of use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lib.jobs.outcomes import Outcome
from lib.jobs.process import Task

STRIKES = 3
TOGETHER = 30.0


@dataclass(frozen=True, slots=True)
class Strike:
    """A failure of a GPU. kind: of the run, as kind_of; at: time.monotonic()."""

    run: str
    kind: str
    at: float
    why: str


class Cards:
    """Failures in a row of each GPU."""

    def __init__(self, on_lost: Callable[[str, str], None] = lambda place, why: None):
        """on_lost: called with a GPU that is out of use from now on, and why."""
        self._on_lost = on_lost
        self._strikes: dict[str, list[Strike]] = {}
        self.lost: dict[str, str] = {}

    def note(
        self, place: str, task: Task, outcome: Outcome, began: float, now: float
    ) -> None:
        """Record the outcome of an attempt; began, now: time.monotonic()."""
        if not place:
            return
        if outcome.status == "done":
            self._strikes.pop(place, None)
            return
        if not blames_card(outcome):
            return
        strikes = self._strikes.setdefault(place, [])
        last = strikes[-1].at if strikes else -math.inf
        if began >= last or now - last > TOGETHER:
            why = f"{outcome.failure}: {outcome.message}"
            strikes.append(Strike(task.name, kind_of(task), now, why))
        if place not in self.lost and (outcome.is_stuck or len(strikes) >= STRIKES):
            self.lost[place] = _reason(strikes, outcome)
            self._on_lost(place, self.lost[place])

    def in_use(self, place: str) -> bool:
        return place not in self.lost

    def is_doubtful(self, task: Task) -> bool:
        """Whether a run of the same kind has just failed on a GPU in use. A run of
        another kind would show whether the GPU is at fault."""
        rows = (row for place, row in self._strikes.items() if self.in_use(place))
        return any(strike.kind == kind_of(task) for row in rows for strike in row)

    def lines(self) -> list[str]:
        """A line for each GPU that is out of use."""
        return [out_of_use_line(place, why) for place, why in self.lost.items()]


def out_of_use_line(place: str, why: str) -> str:
    return f"GPU {place} IS OUT OF USE: {why}"


def blames_card(outcome: Outcome) -> bool:
    """Whether the GPU of an attempt may have caused its end: an error of the device, a
    hang, or a signal such as SIGSEGV."""
    by_signal = outcome.failure == "crash" and (outcome.exit_code or 0) < 0
    return outcome.failure in ("device", "hang") or by_signal


def kind_of(task: Task) -> str:
    """Runs of one kind execute the same code: seeds of an arm."""
    return task.code or task.run_dir.parent.name


def _reason(strikes: Sequence[Strike], outcome: Outcome) -> str:
    last = strikes[-1]
    if outcome.is_stuck:
        return f"{last.run}: {outcome.message}"
    failed = f"{len(strikes)} runs in a row failed there"
    text = f"{failed}, the last one {last.run} ({last.why})"
    if len({strike.kind for strike in strikes}) == 1:
        text += "; all of them are of one arm, which may be at fault instead"
    return text
