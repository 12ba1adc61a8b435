"""Sessions of the runner: when it had which GPUs or slots, for the time line."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt2.plan.names import RUNNER_FILE
from lib.jobs.phases import process_start
from lib.jobs.run_files import append_jsonl
from lib.jobs.slots import place_of

KIND = "session"


@contextmanager
def recorded(root: Path, slots: Sequence[Mapping[str, str]]) -> Iterator[None]:
    """Note in the results folder that this process has these slots, from its start on
    and until the end of the block. What cannot be written is left out."""
    host = socket.gethostname()
    places = [f"{host}:{place_of(slot)}" for slot in slots]
    _append(root, event="began", time=process_start(), places=places)
    try:
        yield
    finally:
        _append(root, event="ended", time=time.time(), places=places)


def _append(root: Path, **record: object) -> None:
    with suppress(OSError, ValueError):
        append_jsonl(root / RUNNER_FILE, {"kind": KIND, **record})
