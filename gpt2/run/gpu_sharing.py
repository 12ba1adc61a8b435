"""Several jobs on one GPU, as far as its memory allows by what their probes took.

Torch-free. A job needs the peak of torch's allocator in its probe and what driver and
libraries take per process.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt2.plan.jobs import Job
from gpt2.run import estimate
from gpt2.settings.rerun_commands import matrix_command
from lib.jobs.options import Options, View
from lib.jobs.process import Task
from lib.jobs.slots import are_shared, place_of

CONTEXT = 2**30  # bytes per process, to be on the safe side; not measured
USABLE = 0.95  # of a GPU's memory; the rest is for fragments and longer runs

Records = Sequence[Mapping[str, Any] | None]


def share(
    tasks: Sequence[Task], jobs: Sequence[Job], root: Path, options: Options, view: View
) -> tuple[list[Task], Options]:
    """Tasks with the memory that they need, options with the memory available.

    With JOBS_PER_GPU=0 a task that was not measured gets a GPU of its own.
    """
    if not jobs or not are_shared(options.slots):
        return list(tasks), options
    records = estimate.known(root, jobs)
    trusted = jobs[0].settings.resources.jobs_per_gpu > 0
    unknown = 0.0 if trusted else math.inf
    needs = [taken(record) for record in records]
    if None in needs and not trusted:
        view.note(
            "jobs whose memory was not measured get a GPU of their own: "
            f"`{matrix_command('estimate')}` measures it, JOBS_PER_GPU=N does without"
        )
    pairs = zip(tasks, needs, strict=True)
    sized = [replace(t, memory=unknown if n is None else n) for t, n in pairs]
    return sized, replace(options, memory=available(records))


def taken(record: Mapping[str, Any] | None) -> float | None:
    """Bytes of GPU memory that a job of this probe takes; None: not measured."""
    held = record.get("gpu_reserved_bytes") if record else None
    return None if held is None else float(held + CONTEXT)


def available(records: Records) -> float:
    """Bytes of the smallest GPU that served a probe; 0 if there was none."""
    totals = [r["gpu_memory_bytes"] for r in records if taken(r) is not None and r]
    return USABLE * min(totals, default=0)


def at_once(records: Records, slots: Sequence[Mapping[str, str]]) -> int:
    """Number of probed jobs that certainly fit at a time, by their memory."""
    largest = max((n for r in records if (n := taken(r)) is not None), default=None)
    if largest is None:
        return len(slots)
    fit = max(1, int(available(records) // largest))
    return sum(min(n, fit) for n in Counter(map(place_of, slots)).values())
