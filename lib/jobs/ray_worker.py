"""Run one attempt (lib/jobs/process.py) on the machine that Ray chose, by JSON.

    python lib/jobs/ray_worker.py PARENT_PID < order.json > outcome.json

The first SIGTERM asks the run for a checkpoint and an end, a second one kills it. The
end of the parent counts as the first; if this process ends, the kernel signals the run.
Unlike a Ray worker it has one thread, and so may fork safely.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from lib.jobs import slots
from lib.jobs.outcomes import Outcome, never_started
from lib.jobs.phases import place_name
from lib.jobs.process import Attempt, Patience, Task
from lib.jobs.run_log import Pace

POLL = 0.05  # seconds


def render_order(
    task: Task, slot: Mapping[str, str], patience: Patience, token: Path
) -> str:
    """The input of this script. token: a file that the sender has just written, to
    check that both see the same disk."""
    order = {"task": asdict(task), "slot": dict(slot), "patience": asdict(patience)}
    return json.dumps({**order, "token": str(token)}, default=str)


def read_outcome(text: str) -> Outcome:
    """The Outcome in the output of this script; ValueError if it is not one."""
    found = json.loads(text)
    if found["pace"] is not None:
        found["pace"] = Pace(**found["pace"])
    return Outcome(**{**found, "log_tail": tuple(found["log_tail"])})


def main() -> int:
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, note)
    outcome = carry_out(json.load(sys.stdin), int(sys.argv[1]), asked)
    json.dump(asdict(outcome), sys.stdout)
    return 0


def carry_out(order: Mapping[str, Any], parent: int, asked: list[int]) -> Outcome:
    """Run the attempt to its end. asked: has one item for each SIGTERM so far.

    On GPUs that it is to avoid nothing is run: they stay assigned to this process until
    a SIGTERM, and the removed token shows that to the sender.
    """
    task = _task(order["task"])
    if not Path(order["token"]).exists():
        return Outcome(status="failed", failure="crash", message=_not_shared(task))
    slot = order["slot"] | slots.promised({**os.environ, **order["slot"]})
    gpus = slots.place_of(slot)
    place = place_name(gpus) if gpus else ""
    if place in task.avoid:
        Path(order["token"]).unlink(missing_ok=True)
        while not asked and os.getppid() == parent:
            time.sleep(POLL)
        return Outcome(status="interrupted", place=place)
    try:
        attempt = Attempt(task, slot, Patience(**order["patience"]))
    except (OSError, ValueError) as error:
        return never_started(error)
    killed = False
    while (outcome := attempt.poll()) is None:
        if len(asked) > 1 and not killed:
            attempt.kill()
            killed = True
        elif asked or os.getppid() != parent:
            attempt.stop()
        time.sleep(POLL)
    return replace(outcome, place=place)


def _task(found: Mapping[str, Any]) -> Task:
    lists = {name: tuple(found[name]) for name in ("command", "avoid")}
    return Task(**{**found, **lists, "run_dir": Path(found["run_dir"])})


def _not_shared(task: Task) -> str:
    return (
        f"{task.run_dir} on {socket.gethostname()} is not the runner's: all machines "
        "have to see the same results folder, under the same path"
    )


if __name__ == "__main__":
    raise SystemExit(main())
