"""State of each task of a scheduler, and the time left for all of them."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lib.jobs.outcomes import Outcome
from lib.jobs.phases import PREPARING, WAITING
from lib.jobs.process import Task
from lib.jobs.run_log import Pace, RunProgress


class Running(Protocol):
    """A running attempt. begun: how messages say that it was started."""

    begun: str
    number: int
    started: float
    progress: RunProgress

    def poll(self) -> Outcome | None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...


@dataclass(kw_only=True)
class TaskState:
    """State of a task in this call of the runner.

    state: queued, running, or at the end skipped (was done before), done, failed,
    interrupted (can be resumed), locked (held by another process).
    """

    task: Task
    state: str = "queued"
    attempt: Running | None = None
    outcome: Outcome | None = None
    failures: Counter[str] = field(default_factory=Counter)
    share_done: float = 0.0  # of its steps, before this call
    preparation: float = 0.0  # seconds that it took, once it is over
    lock_deadline: float = 0.0
    look_again: float = 0.0
    failed_at: set[str] = field(default_factory=set)  # GPUs
    is_moved: bool = False  # killed for its GPU's sake, to start elsewhere

    @property
    def progress(self) -> RunProgress:
        """Of the present attempt, which there must be."""
        assert self.attempt is not None
        return self.attempt.progress

    @property
    def stage(self) -> str:
        """Of the present attempt (lib/jobs/phases.py); "" without one."""
        if self.attempt is None:
            return ""
        return self.attempt.progress.stage(self.attempt.number)

    @property
    def is_ahead(self) -> bool:
        """Whether it prepares, or waits, while another task of its slot trains."""
        return self.stage in (PREPARING, WAITING)

    @property
    def pace(self) -> Pace | None:
        """Pace of the current attempt, or of the last one; None: not known."""
        if self.attempt is not None:
            return self.attempt.progress.pace
        return self.outcome.pace if self.outcome is not None else None


# ---- the time left --------------------------------------------------------------


def seconds_left(
    cells: Sequence[TaskState], queue: Sequence[TaskState], slots: int
) -> float | None:
    """Seconds until all cells have ended, None while unknown: the queue distributed
    over the slots, each task with the mean start-up time and pace so far."""
    seen = _seen(cells)
    if seen is None:
        return None
    busy = sorted((cell for cell in cells if cell.attempt), key=lambda c: c.is_ahead)
    ends = [_left(cell, *seen) for cell in busy[:slots]]
    ends += [0.0] * (slots - len(ends))
    heapq.heapify(ends)
    for cell in [*busy[slots:], *queue]:
        heapq.heapreplace(ends, ends[0] + _whole(cell, *seen))
    return max(ends)


def _seen(cells: Sequence[TaskState]) -> tuple[float, float] | None:
    """(seconds of start-up, seconds per unit of cost), means over this call; the
    latter is not used where all tasks have a time budget."""
    starts, seconds, cost = [], 0.0, 0.0
    for cell in cells:
        pace = cell.pace
        if pace is not None:
            starts.append(pace.start_up)
        if pace is not None and cell.task.max_steps:
            seconds += pace.per_step * cell.task.max_steps
            cost += cell.task.cost
    if not cost and not all(cell.task.seconds for cell in cells):
        return None
    return (sum(starts) / len(starts), seconds / (cost or 1.0)) if starts else None


def _whole(cell: TaskState, start_up: float, per_cost: float) -> float:
    length = cell.task.seconds or cell.task.cost * per_cost
    return start_up + length * (1 - cell.share_done)


def _left(cell: TaskState, start_up: float, per_cost: float) -> float:
    known = cell.progress.seconds_left
    if known is not None:
        return known
    assert cell.attempt is not None
    whole = _whole(cell, start_up, per_cost)
    return max(0.0, whole - (time.monotonic() - cell.attempt.started))
