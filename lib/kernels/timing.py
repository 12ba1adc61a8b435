"""Time of a kernel on a GPU, independent of how fast the host launches it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lib.kernels import ahead

CALLS = 10
FLUSH = 256 << 20  # bytes written before each call: more than a GPU's caches hold
AHEAD, FARTHEST = 32, 512  # such writes before all of them: 3 ms on an H100, and more


def seconds(call: Callable[[], object]) -> float:
    """Shortest time that the GPU spends on a call, with cold caches.

    All calls are queued behind other work. A host that compiles at the same time may
    take longer to launch a kernel than the kernel runs; if the GPU waited for it
    between two events, all choices would look equally slow. Another process on the
    GPU, such as a run that trains while the next one prepares, makes some calls longer;
    the shortest is one that ran alone.
    """
    call()  # allocations and compilation of the first call
    ahead.wait()
    space = torch.empty(FLUSH, dtype=torch.uint8, device="cuda")
    writes = AHEAD
    while True:
        for _ in range(writes):
            space.zero_()
        marks = []
        for _ in range(CALLS):
            space.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            marks.append((start, end))
        late = marks[0][0].query()  # the GPU was there before all were queued
        marks[-1][1].synchronize()
        if not late or writes >= FARTHEST:
            return min(a.elapsed_time(b) for a, b in marks) / 1e3
        writes *= 2


def once(call: Callable[[], object]) -> float:
    """Run a call to its end, to see whether it can be done; 0."""
    call()
    torch.cuda.synchronize()
    return 0.0
