"""Options of a scheduler: limits, order and display of its tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lib.jobs.cards import Cards
from lib.jobs.process import Attempt, Patience, Task
from lib.jobs.retries import RETRIES
from lib.jobs.task_state import Running, TaskState

if TYPE_CHECKING:
    from lib.jobs.scheduler import Scheduler

Launch = Callable[[Task, Mapping[str, str], Patience], Running]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to run the tasks.

    slots: one environment for each task that may run at the same time.
    memory: bytes of a GPU, for the tasks that share it; one alone is always let in.
    ahead: tasks that a slot begins while another of its tasks has the device; they
    prepare and then wait for their turn (lib/jobs/turn.py), which the slots name.
    launch: makes an attempt of a task in a slot; raises as lib.jobs.process.Attempt.
    lock_wait: seconds to wait for the lock of a run that another process still holds,
    such as a trainer that writes its checkpoint after its runner was killed.
    stop_file: creating this file asks for a graceful stop.
    cards: the failures of GPUs so far.
    """

    slots: Sequence[Mapping[str, str]] = ({},)
    memory: float = 0.0
    ahead: int = 0
    launch: Launch = Attempt
    retries: Mapping[str, int] = field(default_factory=lambda: dict(RETRIES))
    patience: Patience = field(default_factory=Patience)
    fail_fast: bool = False
    longest_first: bool = False
    lock_wait: float = 60.0
    stop_file: Path | None = None
    cards: Cards = field(default_factory=Cards)
    poll: float = 0.05


class View(Protocol):
    """Shows what happens. refresh() is called often and has to be cheap."""

    def started(self, cell: TaskState) -> None: ...
    def ended(self, cell: TaskState, retried: bool) -> None: ...
    def note(self, text: str) -> None: ...
    def refresh(self, board: Scheduler) -> None: ...
