"""Record work on a GPU as a graph of CUDA or HIP, which is launched as a whole."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

WARM = 3  # passes before a recording, in which kernels get compiled and tuned


def warm(work: Callable[[], object], device: torch.device) -> None:
    """Do the work ``WARM`` times on a stream of its own, as a recording requires.

    Raises RuntimeError if the host waits for the GPU in it.
    """
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(WARM - 1):
            work()
        with _waiting_is_an_error():
            work()
    torch.cuda.current_stream(device).wait_stream(side)


@contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    """Raise RuntimeError where the host waits for the GPU, before a recording does.

    A recording that breaks off leaves torch 2.11 as if it went on: its stream is the
    current one, its memory and that of batches copied ahead is kept for good, and
    emptying the cache or drawing a random number is an error.
    """
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():  # that this does not see all that waits
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def record_graph(
    work: Callable[[], Tensor], pool: Any = None
) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """The graph of some work, and the tensor in which each replay leaves its result.

    pool: of another graph, whose memory it may use.
    """
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as NCCL's watchdog, may continue to query the GPU.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = work()
    return graph, result


@contextmanager
def stream_restored(device: torch.device) -> Iterator[None]:
    """Undo what a recording that breaks off leaves behind, so that work can
    continue."""
    stream = torch.cuda.current_stream(device)
    try:
        yield
    except RuntimeError:
        torch.cuda.set_stream(stream)
        # The generator still counts its numbers for the recording; a copy does not.
        generator = torch.cuda.default_generators[stream.device_index]
        generator.graphsafe_set_state(generator.clone_state())
        raise
