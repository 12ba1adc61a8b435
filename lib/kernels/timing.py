"""How long a kernel takes on a GPU, however slow its host is."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

CALLS = 10
FLUSH = 256 << 20  # bytes written before each call: more than a GPU's caches hold
AHEAD, FARTHEST = 32, 512  # such writes before all of them: 3 ms on an H100, and more


def seconds(call: Callable[[], object]) -> float:
    """Median time that the GPU spends on a call, its caches cold.

    All calls are queued behind other work. A host that compiles at the same time takes
    longer to launch some kernels than they run, and a GPU that waits for it between two
    marks makes one choice look as slow as the next.
    """
    call()  # whatever is made by the first
    space = torch.empty(FLUSH, dtype=torch.uint8, device="cuda")
    ahead = AHEAD
    while True:
        for _ in range(ahead):
            space.zero_()
        marks = []
        for _ in range(CALLS):
            space.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            marks.append((start, end))
        late = marks[0][0].query()  # had come so far before all were queued
        marks[-1][1].synchronize()
        if not late or ahead >= FARTHEST:
            return statistics.median(a.elapsed_time(b) for a, b in marks) / 1e3
        ahead *= 2


def once(call: Callable[[], object]) -> float:
    """0 after a launch that the GPU has completed: to see whether it can be done."""
    call()
    torch.cuda.synchronize()
    return 0.0
