"""A card shared by test processes that run at once, as under ``pytest -n 8``.

Each holds as much of it as its test is marked to need, ``gpu(gib=8)``, and waits
until that is free: one that measures or fills the memory takes it from nobody.
"""

from __future__ import annotations

import fcntl
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO

SHARES = 32
QUEUE = SHARES  # held while one waits, so that the next waits behind it
GIB = 2**30
USUAL = 2.0  # GiB: a context and little in it
# Bytes of this file are locked, each for a share; a process that dies lets go.
FILE = Path(tempfile.gettempdir(), f"kablate-tests-card-{os.getuid()}")


def shares_for(gib: float, card: float) -> int:
    """Shares of a card of that many GiB; a tenth of it is left to fragments."""
    return max(1, math.ceil(min(1.0, gib / (0.9 * card)) * SHARES))


@contextmanager
def held(wanted: int, path: Path = FILE) -> Iterator[list[int]]:
    """The numbers of that many shares, once nobody else has them."""
    with path.open("ab") as file:
        lock(file, QUEUE, wait=True)
        mine: list[int] = []
        for wait in (False, True):
            for share in range(SHARES):
                if len(mine) < wanted and share not in mine and lock(file, share, wait):
                    mine.append(share)
        fcntl.lockf(file, fcntl.LOCK_UN, 1, QUEUE)
        yield mine


def lock(file: IO[bytes], byte: int, wait: bool) -> bool:
    """Whether it is this process's now."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, byte)
    except BlockingIOError:
        return False
    return True


@cache
def size() -> float:
    """GiB of the first card."""
    import torch  # not where no test asks for a GPU

    return torch.cuda.get_device_properties(0).total_memory / GIB
