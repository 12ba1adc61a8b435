"""Cards shared by test processes that run at once, as under ``pytest -n 8``.

Each worker uses one card. It holds as much of its memory as the test is marked to
need, ``gpu(gib=8)``, and waits until that is free, so that a test that measures or
fills the memory does not disturb the others.
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

import pytest

# Of a test that runs on each.
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SHARES = 32
QUEUE = SHARES  # held while one waits, so that the next waits behind it
GIB = 2**30
USUAL = 2.0  # GiB: a context and little in it
VISIBLE = "CUDA_VISIBLE_DEVICES"


def choose(worker: str, cards: list[str]) -> None:
    """Show an xdist worker (``gw3``) one of several cards, before torch is imported."""
    if worker and len(cards) > 1:
        os.environ[VISIBLE] = cards[int(worker.removeprefix("gw")) % len(cards)]


def visible() -> list[str]:
    """Names of the NVIDIA cards that torch would see; empty without any."""
    if VISIBLE in os.environ:
        return os.environ[VISIBLE].split(",")
    return [str(index) for index in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def file() -> Path:
    """File of which each byte is locked for a share; the lock ends with its process."""
    name = f"kablate-tests-card-{os.getuid()}-{os.environ.get(VISIBLE, '0')}"
    return Path(tempfile.gettempdir(), name)


def shares_for(gib: float, card: float) -> int:
    """Shares of a card of that many GiB; a tenth of it is left to fragments."""
    return max(1, math.ceil(min(1.0, gib / (0.9 * card)) * SHARES))


@contextmanager
def held(wanted: int, path: Path | None = None) -> Iterator[list[int]]:
    """Hold that many shares, by number, once they are free."""
    with (path or file()).open("ab") as locked:
        lock(locked, QUEUE, wait=True)
        mine: list[int] = []
        for wait in (False, True):
            for share in range(SHARES):
                if (
                    len(mine) < wanted
                    and share not in mine
                    and lock(locked, share, wait)
                ):
                    mine.append(share)
        fcntl.lockf(locked, fcntl.LOCK_UN, 1, QUEUE)
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
