"""Faults on demand, for tests only: KABLATE_TEST_FAULTS="nan@5,oom@3".

Each is KIND@UPDATE or KIND@UPDATE@NAME (only in the run of that name):
nan (a loss), oom (while the micro batch is the configured one), crash, kill
(SIGKILL to itself), hang, disk. KABLATE_TEST_CHECKPOINT_SECONDS makes every
write of a checkpoint wait that long between its files.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from typing import NoReturn

KINDS = ("nan", "oom", "crash", "kill", "hang", "disk")


def wanted(update: int, name: str) -> set[str]:
    """The kinds of fault that are to happen in this update of the named run."""
    found = set()
    for text in filter(None, os.environ.get("KABLATE_TEST_FAULTS", "").split(",")):
        kind, _, where = text.partition("@")
        number, _, only = where.partition("@")
        if kind not in KINDS or not number.isdecimal():
            raise ValueError(
                f"KABLATE_TEST_FAULTS: {text!r} is not KIND@UPDATE with a kind "
                f"of {', '.join(KINDS)}"
            )
        if int(number) == update and only in ("", name):
            found.add(kind)
    return found


def _oom() -> NoReturn:
    import torch

    raise torch.OutOfMemoryError("out of memory (injected)")


def _crash() -> NoReturn:
    raise RuntimeError("crash (injected)")


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> NoReturn:
    while True:
        time.sleep(60.0)


def _disk() -> NoReturn:
    raise OSError(errno.ENOSPC, "no space left (injected)")


_ACTS: dict[str, Callable[[], None]] = {
    "oom": _oom,
    "crash": _crash,
    "kill": _kill,
    "hang": _hang,
    "disk": _disk,
}


def commit(kinds: set[str]) -> None:
    """Make them happen; "nan" is the caller's to fake."""
    for kind in KINDS:
        if kind in kinds and kind in _ACTS:
            _ACTS[kind]()


def linger_in_checkpoint() -> None:
    """Wait between the files of a checkpoint, for a kill to strike there."""
    seconds = os.environ.get("KABLATE_TEST_CHECKPOINT_SECONDS")
    if seconds:
        time.sleep(float(seconds))
