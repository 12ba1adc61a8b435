"""Compile kernels on all cores at once, before the first of them is launched.

A choice among tiles needs each of them compiled, and Triton compiles one after the
other, a second each, while the GPU waits. Launches within ``collected`` are noted and
not carried out; each is then compiled by a thread of its own (Triton's passes let other
threads run), while this thread goes on. ``wait`` before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress

import torch

from lib.cpus import usable_cores

MOST_THREADS = 16

_noted: dict[object, Callable[[], object]] | None = None
_running: list[Future[None]] = []


def is_collecting() -> bool:
    """Whether launches are to be noted instead of carried out."""
    return _noted is not None


def note(key: object, compile_one: Callable[[], object]) -> None:
    """Compile this when all launches are noted; a key is compiled once."""
    assert _noted is not None, "launches are carried out"
    _noted.setdefault(key, compile_one)


@contextmanager
def collected() -> Iterator[None]:
    """Launches within leave their results unwritten; they are compiled from the end of
    the block on. Gradients are taken in this thread meanwhile."""
    global _noted
    assert _noted is None, "noted already"
    _noted = {}
    try:
        with torch.autograd.set_multithreading_enabled(False):
            yield
        _start(list(_noted.values()))
    finally:
        _noted = None


def _start(work: list[Callable[[], object]]) -> None:
    if not work:
        return
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    threads = min(len(work), MOST_THREADS, usable_cores())
    pool = ThreadPoolExecutor(threads, "compile-ahead", _use, (device,))
    _running.extend(pool.submit(_compile, one) for one in work)
    pool.shutdown(wait=False)


def _use(device: int | None) -> None:
    if device is not None:
        torch.cuda.set_device(device)


def _compile(one: Callable[[], object]) -> None:
    with suppress(Exception):  # its launch fails again, and is dealt with there
        one()


def wait() -> None:
    """Wait until nothing is being compiled: times are taken on quiet cores."""
    while _running:
        _running.pop().result()
