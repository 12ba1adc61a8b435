"""Signals that are noted, for a loop to act on, instead of ending the process."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


@contextmanager
def handled(
    numbers: Iterable[signal.Signals], note: Callable[[int], None]
) -> Iterator[None]:
    """Within the block these signals call note(number); those that are ignored, as
    SIGHUP under nohup, stay ignored. For the main thread."""
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: note(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
