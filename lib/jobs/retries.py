"""Failures that are tried again within one call of the runner, and how often."""

from __future__ import annotations

from collections.abc import Mapping

from lib.jobs.cards import blames_card
from lib.jobs.outcomes import Outcome
from lib.jobs.task_state import TaskState

# Attempts beyond the first, by class of failure. A NaN comes again and a full disk
# stays full.
# Memory: each attempt takes less; a run that has nothing left to halve ends as
# status "oom", which is not tried again.
RETRIES = {
    "crash": 1,
    "killed": 2,
    "hang": 1,
    "oom": 16,
    "nan": 0,
    "disk": 0,
    "gradients": 0,
    "device": 1,
}


def may_retry(cell: TaskState, outcome: Outcome, retries: Mapping[str, int]) -> bool:
    """Whether a task that has ended so may start again.

    A crash is tried again only after an update was made, as one at the start comes
    again, unless the GPU may be at fault. retries: as RETRIES.
    """
    if outcome.status == "oom" or outcome.is_stuck:
        return False
    if cell.is_moved:
        return True
    if outcome.failure is None:
        return False
    on_card = cell.failed_at and blames_card(outcome)
    if outcome.failure == "crash" and not outcome.steps and not on_card:
        return False
    if not cell.task.run_dir.is_dir():  # moved, with the checkpoints to resume from
        return False
    return cell.failures[outcome.failure] < retries.get(outcome.failure, 0)
