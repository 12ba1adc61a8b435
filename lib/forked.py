"""Calls that forked processes make while this process waits for the first of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

from lib.jobs.linux_processes import end_with

T = TypeVar("T")


class Begin(Protocol):
    """Begins a call; the function that it returns waits for the result."""

    def __call__(self, call: Callable[[], T], /) -> Callable[[], T]: ...


def on_demand(call: Callable[[], T], /) -> Callable[[], T]:
    """Makes the call here, when its result is asked for."""
    return call


@contextmanager
def forked(processes: int) -> Iterator[Begin]:
    """Calls within the block are made by so many processes, in the order in which they
    are begun. Calls, results and exceptions are pickled. With fewer than two, or where
    the system gives no more processes or semaphores, they are made here on demand.

    The processes end with the block, whatever they are doing, and with this process.
    They are forked here: libraries must not have started threads that they need. Asking
    for a result raises BrokenProcessPool if a process was killed.
    """
    others = set(multiprocessing.active_children())
    pool = None
    try:
        pool = _started(processes) if processes > 1 else None
        yield on_demand if pool is None else _begin_in(pool)
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _started(processes: int) -> ProcessPoolExecutor | None:
    # A Ctrl-C reaches the whole group, and is for this process alone. SIGTERM waits for
    # _set_up: until then a process has the handlers of this one, such as a traceback.
    ours = (signal.SIGINT, signal.SIGTERM)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ours)
    try:
        context = multiprocessing.get_context("fork")
        pool = ProcessPoolExecutor(processes, context, _set_up, (os.getpid(),))
        pool.submit(os.getpid)  # which forks them all
    except (OSError, NotImplementedError):
        return None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pool


def _set_up(parent: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
    end_with(parent)


def _begin_in(pool: ProcessPoolExecutor) -> Begin:
    def begin(call: Callable[[], T], /) -> Callable[[], T]:
        return pool.submit(call).result

    return begin
