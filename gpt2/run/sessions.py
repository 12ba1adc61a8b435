"""Sessions of the runner: when it had which GPUs or slots, and which GPUs failed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt2.plan.names import OUT_OF_USE, RUNNER_FILE
from gpt2.settings.schema import Resources
from lib.atomic_files import append_jsonl
from lib.jobs.phases import place_name, process_start
from lib.jobs.slots import place_of

KIND = "session"


@contextmanager
def recorded(
    root: Path, slots: Sequence[Mapping[str, str]], resources: Resources
) -> Iterator[None]:
    """Note in the results folder that this process has these slots, from its start on
    and until the end of the block. Those of Ray are not its own. What cannot be written
    is left out."""
    own = slots if resources.engine == "local" else ()
    places = [place_name(place_of(slot), resources.device) for slot in own]
    _append(root, event="began", time=process_start(), places=places)
    try:
        yield
    finally:
        _append(root, event="ended", time=time.time(), places=places)


def note_lost(root: Path, gpus: str, why: str) -> None:
    """Note that GPUs are out of use from now on: of this machine, or of "host:0,1"."""
    place = gpus if ":" in gpus else place_name(gpus)
    _append(root, kind=OUT_OF_USE, time=time.time(), place=place, why=why)


def _append(root: Path, kind: str = KIND, **record: object) -> None:
    with suppress(OSError, ValueError):
        append_jsonl(root / RUNNER_FILE, {"kind": kind, **record})
