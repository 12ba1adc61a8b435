"""PREPARE_AHEAD: runs that prepare on a device while another run trains there.

A run imports, compiles, tunes and compares itself with the formulas for up to a minute
before its first update. The scheduler therefore begins the next runs of a slot early
(lib/jobs/turn.py). They hold GPU memory, as do the run that trains and one that still
writes its results; how many there may be follows from the estimated memory of the
largest job. Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpt2.plan.jobs import Job
from gpt2.plan.memory import USABLE, memory
from gpt2.run.gpu_sharing import CONTEXT
from lib.cpus import usable_cores
from lib.human import size
from lib.jobs.options import Options
from lib.jobs.slots import are_shared, card_memory, place_of
from lib.jobs.turn import SHARE, TURN, turn_path

AUTO = -1
MOST = 3
CORES = 4  # that one run keeps busy while it compiles


@dataclass(frozen=True, slots=True)
class Ahead:
    """count: runs that may prepare in each slot. need: bytes of a GPU for each run that
    prepares or trains, by estimate; rest: for one that still writes its results; card:
    bytes of the smallest GPU; 0: no GPU, or not known."""

    count: int
    need: int = 0
    rest: int = 0
    card: int = 0

    @property
    def share(self) -> int:
        """Bytes that a run may take before its turn: an even part of what is there. The
        comparison with the formulas needs more than the estimate for training."""
        return max(self.need, int(USABLE * self.card - self.rest) // (self.count + 1))

    def describe(self) -> str:
        """For the listing; "" if no run prepares ahead."""
        if not self.count:
            return ""
        runs = (
            "1 more run prepares" if self.count == 1 else f"{self.count} more prepare"
        )
        text = f"while a run trains, {runs} in its slot (PREPARE_AHEAD)"
        if not self.need:
            return text
        if not self.card:
            return f"{text}; {size(self.need)} each by estimate"
        return (
            f"{text}, {size(self.need)} each by estimate and at most "
            f"{size(self.share)} of the {size(self.card)} of a GPU"
        )


def runs_ahead(jobs: Sequence[Job], options: Options) -> Ahead:
    """How many runs may prepare in each slot, as configured or as cores and memory
    allow: none on a CPU, with several ranks or slots on a GPU, on Ray, and where a run
    is limited by time, which others would take from it."""
    if not jobs or not jobs[0].settings.resources.is_one_local_process:
        return Ahead(0)
    asked, slots = jobs[0].settings.resources, options.slots
    on_gpu = all(map(place_of, slots))
    need, rest = _needs(jobs) if on_gpu else (0, 0)
    card = card_memory(slots[0]) if on_gpu else 0
    if asked.prepare_ahead != AUTO:
        return Ahead(min(asked.prepare_ahead, len(jobs) - 1), need, rest, card)
    budgeted = any(job.settings.optim.time_budget for job in jobs)
    if not card or budgeted or are_shared(slots):
        return Ahead(0)
    by_cores = max(1, usable_cores() // len(slots) // CORES)
    by_memory = max(0, int((USABLE * card - rest) // need) - 1)
    left = -(-len(jobs) // len(slots)) - 1  # after the first of each slot
    return Ahead(min(MOST, by_cores, by_memory, left), need, rest, card)


def _needs(jobs: Sequence[Job]) -> tuple[int, int]:
    """Bytes for the largest job until its last update, and after it, when activations
    are given back; with what driver and libraries take."""
    found = [memory(job.settings) for job in jobs]
    rest = max(one.total - one.activations - one.temporaries for one in found)
    return max(one.total for one in found) + CONTEXT, rest + CONTEXT


def with_turns(options: Options, ahead: Ahead, root: Path) -> Options:
    """The options with turns: in a results folder, by the number of each slot."""
    if not ahead.count:
        return options
    share = {SHARE: str(ahead.share)} if ahead.card else {}
    slots = [
        {**slot, TURN: turn_path(root, number), **share}
        for number, slot in enumerate(options.slots)
    ]
    return replace(options, slots=slots, ahead=ahead.count)
