"""When a run reached each phase: records of kind "phase" in its metrics.jsonl.

    {"kind": "phase", "name": "ready", "time": 1764500000.123, "attempt": 1}

"started" also has "place": host and GPUs, as "node7:0,1", or "node7:" without any.

time is in Unix seconds, so that the runs of a matrix can be put on one time line.
Each attempt appends its own records; a phase that an attempt passes twice (it ran out
of memory and prepared again) is there twice. A process that was killed leaves none
after its last one.

    started       the process exists
    imported      torch and the trainer are imported
    data          device, tokens and initial weights are there
    kernels       attention and MLP kernels are chosen
    model         model, optimizer and checkpoint are on the device
    compiled      warmed up: compiled, tuned, recorded as a graph
    ready         compared with the formulas: nothing is left to prepare
    turn          it has the GPU to itself and may train (at once where it is alone)
    first_update  the first update of this attempt is made
    last_update   the last one is made
    evaluated     the final evaluation is done
    released      the next run may take the GPU
    written       last checkpoint and exported model are on disk
    ended         its outcome is about to be written to status.json
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

KIND = "phase"
PHASES = (
    "started",
    "imported",
    "data",
    "kernels",
    "model",
    "compiled",
    "ready",
    "turn",
    "first_update",
    "last_update",
    "evaluated",
    "released",
    "written",
    "ended",
)


PREPARING, WAITING = "preparing", "waiting"
TRAINING, FINISHING = "training", "finishing"


def next_stage(stage: str, phase: str) -> str:
    """The stage of a run, one of the four above, once it has reached a phase.

    A run that has its turn and prepares again, with less memory, counts as training.
    """
    if phase == "started" or (phase == "data" and stage == FINISHING):
        return PREPARING
    if phase == "ready" and stage == PREPARING:
        return WAITING
    return {"turn": TRAINING, "released": FINISHING}.get(phase, stage)


def phase_record(
    name: str, attempt: int, at: float | None = None, place: str = ""
) -> dict[str, Any]:
    """The record of one phase; at: Unix seconds, now by default."""
    assert name in PHASES, name
    seconds = round(time.time() if at is None else at, 3)
    where = {"place": place} if place else {}
    return {"kind": KIND, "name": name, "time": seconds, "attempt": attempt, **where}


def phases_of(records: Iterable[Mapping[str, Any]]) -> list[tuple[str, float, int]]:
    """(name, Unix seconds, attempt) of each phase among a run's records, in order;
    records of another form are skipped."""
    return [
        (record["name"], float(record["time"]), record["attempt"])
        for record in records
        if record.get("kind") == KIND
        and record.get("name") in PHASES
        and isinstance(record.get("time"), int | float)
        and isinstance(record.get("attempt"), int)
    ]


def place_name(gpus: str, device: str = "") -> str:
    """Host and GPUs as in a record: ``gpus`` are those set aside, as "0,1"; without
    any, the one that a ``device`` such as "cuda:1" names."""
    return f"{socket.gethostname()}:{gpus or device.partition(':')[2]}"


def process_start() -> float:
    """Unix seconds at which this process was created: early by about a hundredth at
    most, in which the kernel counts, and never late, so that it precedes every other
    phase. Where /proc does not say so, the present time."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return time.time()
    # Not by /proc/uptime, which is cut to hundredths and would make the start late. The
    # time is read before the time since boot, so that a pause between the two can only
    # make their difference too small: the largest of several is the most exact.
    booted = max(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) for _ in "123")
    return booted + ticks / os.sysconf("SC_CLK_TCK")
