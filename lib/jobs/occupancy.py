"""Which task starts in which slot, and which waits although a slot is free."""

from __future__ import annotations

from collections.abc import Sequence

from lib.jobs.options import Options
from lib.jobs.phases import FINISHING, PREPARING
from lib.jobs.process import Task
from lib.jobs.slots import place_of
from lib.jobs.task_state import TaskState


class Occupancy:
    """The running tasks of each slot."""

    def __init__(self, options: Options) -> None:
        self._places = [place_of(slot) for slot in options.slots]
        self._options, self._ahead = options, options.ahead
        self._tasks: list[list[TaskState]] = [[] for _ in options.slots]

    def put(self, cell: TaskState, slot: int) -> None:
        """The task has been started there."""
        self._tasks[slot].append(cell)

    def take(self, cell: TaskState) -> str:
        """The task has ended; the GPU that it had."""
        slot = next(n for n, there in enumerate(self._tasks) if cell in there)
        self._tasks[slot].remove(cell)
        return self._places[slot]

    def at(self, place: str) -> list[TaskState]:
        """Running tasks that have this GPU."""
        pairs = zip(self._places, self._tasks, strict=True)
        return [cell for where, there in pairs if where == place for cell in there]

    @property
    def usable(self) -> list[int]:
        """Slots with GPUs that are in use, or with none."""
        return [n for n, p in enumerate(self._places) if self._options.cards.in_use(p)]

    def free(self) -> list[int]:
        """Slots that may begin another task: one trains or comes next, ``ahead``
        prepare, and one more may still be writing what it has trained."""
        return [n for n in self.usable if self._has_room(self._tasks[n])]

    def _has_room(self, there: Sequence[TaskState]) -> bool:
        if not self._ahead:
            return not there
        to_come = [cell for cell in there if cell.stage != FINISHING]
        return len(to_come) <= self._ahead and len(there) <= self._ahead + 1

    def slot_for(
        self, cell: TaskState, free: Sequence[int], queue: Sequence[TaskState]
    ) -> int | None:
        """The slot of ``free`` where a task of the queue is to start now, if any."""
        slots = self._elsewhere(cell, free)
        slots = [n for n in slots if not self._compiles_in_vain(cell.task, n, queue)]
        slots = [n for n in slots if self._has_memory(cell.task, n)]
        # A task stays in the slot where it prepares, so one that can train sooner in
        # another slot waits for that: behind a long task it may be the last to end.
        work = {n: sum(map(_work_left, self._tasks[n])) for n in self.usable}
        least = min(work.values())
        slots = [n for n in slots if not self._tasks[n] or work[n] <= least]
        shared = {n: len(self.at(self._places[n])) for n in slots}
        return min(slots, key=lambda n: (work[n], shared[n]), default=None)

    def _elsewhere(self, cell: TaskState, free: Sequence[int]) -> list[int]:
        """The free slots on GPUs that have not failed with this task; all of them
        if it has failed with every GPU in use."""
        others = [n for n in self.usable if self._places[n] not in cell.failed_at]
        return [n for n in free if n in others or not others]

    def _compiles_in_vain(
        self, task: Task, slot: int, queue: Sequence[TaskState]
    ) -> bool:
        """Whether it would compile what another task is compiling, and could find in
        the cache later, or delay the first update of a slot where nothing trains yet.
        An empty slot waits for neither, unless other code is left to begin with."""
        if not task.code:
            return False
        there = self._tasks[slot]
        running = [cell for cells in self._tasks for cell in cells]
        preparing = [cell for cell in running if cell.stage == PREPARING]
        codes = {cell.task.code for cell in preparing}
        if not there:
            others = {cell.task.code for cell in queue} - codes
            return bool(self._ahead and task.code in codes and others)
        return task.code in codes or all(cell in preparing for cell in there)

    def _has_memory(self, task: Task, slot: int) -> bool:
        """Whether its GPU has memory left for the task; for one alone it always has."""
        there = self.at(self._places[slot])
        taken = sum(cell.task.memory for cell in there)
        return not there or taken + task.memory <= self._options.memory


def _work_left(cell: TaskState) -> float:
    """Cost of the updates that a running task has not made yet."""
    progress = cell.progress
    done = progress.step / progress.max_steps if progress.max_steps else 0.0
    return cell.task.cost * max(0.0, 1.0 - done)
