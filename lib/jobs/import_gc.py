"""Long imports, without what the garbage collector takes of them.

While torch is imported, hundreds of thousands of objects come to stay. The collector
looks through them over and over, and again in each process that is forked later,
which thereby copies the memory they lie in. It finds nothing: they are modules.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """For imports alone: what is there at the end is taken to stay for ever."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
