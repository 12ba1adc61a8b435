"""Progress of the runs of a results folder, as data and as a table.

Torch-free. All is read from the files of the runs, also while they are written.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt2.plan.jobs import Plan
from gpt2.run.results_dir import matrix_lock, read_matrix_file
from gpt2.settings.rerun_commands import matrix_command
from lib.files import Linked, links_to
from lib.jobs.phases import TRAINING
from lib.jobs.run_files import effective_status, is_locked, read_status
from lib.output import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK
from lib.terminal import table

UNREADABLE = "unreadable"
WATCH = 10.0  # seconds between looks at the work of another runner


def status_word(run_dir: Path) -> str:
    """As lib.jobs.run_files.effective_status; "unreadable" if it cannot be read."""
    try:
        return effective_status(run_dir)
    except (OSError, ValueError):
        return UNREADABLE


def next_commands(plan: Plan) -> Iterator[tuple[str, str]]:
    """Commands for the jobs that are not done, each with its purpose: runs that cannot
    be read are left alone by `make`, and have to be replaced."""
    states = {
        job.run_dir: status_word(plan.output_dir / job.run_dir) for job in plan.jobs
    }
    lost = [run for run, state in states.items() if state == UNREADABLE]
    if set(states.values()) - {"done", UNREADABLE} or not lost:
        yield matrix_command(), "to continue"
    if lost:
        why = "to run again what cannot be read, and keep its files aside"
        yield matrix_command("rerun", lost), why


def statuses(plan: Plan) -> Counter[str]:
    """Number of jobs of a plan in each status."""
    return Counter(status_word(plan.output_dir / job.run_dir) for job in plan.jobs)


def plan_states(
    plan: Plan, asked: Collection[str] | None = None
) -> list[dict[str, Any]]:
    """``run_states`` of these runs; by default of all that are planned now or were
    begun, as the last call of the runner may have been for a few of them."""
    begun = read_matrix_file(plan.output_dir)["jobs"]
    runs = [job.run_dir for job in plan.jobs] + [job["run_dir"] for job in begun]
    shown = [run for run in dict.fromkeys(runs) if asked is None or run in asked]
    return run_states(plan.output_dir, shown)


def watch(plan: Plan) -> int:
    """Show the progress until the runner ends; an exit code like its own."""
    working, shown = True, ""
    while working:
        working = is_locked(matrix_lock(plan.output_dir))
        states = status_table(plan_states(plan))
        if states != shown:
            print(f"\n{states}", end="", flush=True)
        shown = states
        time.sleep(WATCH if working else 0)
    found = statuses(plan)
    if found["failed"] or found["oom"]:
        return EXIT_FAILED
    return EXIT_OK if set(found) == {"done"} else EXIT_INTERRUPTED


def run_states(output_dir: Path, runs: Sequence[str]) -> list[dict[str, Any]]:
    """Progress and failure of each run of a matrix, from its files alone.

    status: as lib.jobs.run_files.effective_status, "unreadable", or "a link", which is
    not followed. stage: of a running one. update: its last one.
    """
    return [_run_state(output_dir, run) for run in runs]


def _run_state(output_dir: Path, run: str) -> dict[str, Any]:
    from lib.jobs.run_log import RunProgress

    names = ("status", "stage", "attempt", "update", "max_updates", "loss", "val_loss")
    state: dict[str, Any] = {"run_dir": run, **dict.fromkeys(names)}
    state |= {"tokens_per_s": None, "failure": None, "message": None, "alarms": []}
    try:
        for link in links_to(output_dir, Path(run)):
            raise Linked(link)
        run_dir = output_dir / run
        progress, status = RunProgress(run_dir, 0), read_status(run_dir)
        word = effective_status(run_dir)
        if word == "planned":  # what it has prepared does not count
            status |= {"attempt": 0, "message": ""}
    except (OSError, ValueError) as error:
        is_link = isinstance(error, Linked)
        word = "a link" if is_link else UNREADABLE
        return {**state, "status": word, "message": str(error)}
    return {
        **state,
        "status": word,
        "stage": progress.stage(status["attempt"]) if word == "running" else None,
        "attempt": status["attempt"],
        "update": max(progress.step, status["step"]),
        "max_updates": status["max_steps"],
        "loss": progress.loss,
        "val_loss": progress.val_loss,
        "tokens_per_s": progress.tokens_per_s,
        "failure": status["failure"],
        "message": status["message"],
        "alarms": status["alarms"],
    }


def status_table(states: Sequence[Mapping[str, Any]]) -> str:
    """Table of ``run_states``, with failures and alarms below."""
    head = ("run", "status", "attempt", "update", "loss", "val loss", "tokens/s")
    rows = [_status_cells(state) for state in states]
    wrong = [line for state in states for line in _wrong(state)]
    spare = ("attempt", "tokens/s", "loss", "val loss")
    return table(head, rows, left=(0, 1), spare=spare) + "".join(wrong)


def _wrong(state: Mapping[str, Any]) -> Iterator[str]:
    if state["failure"] or (state["message"] and state["update"] is None):
        yield f"{state['run_dir']}: {state['message']}\n"
    for alarm in state["alarms"]:
        at = f"{state['run_dir']} at update {alarm['step']}"
        yield f"ALARM {at}: {alarm['message']}\n"


def _status_cells(state: Mapping[str, Any]) -> tuple[str, ...]:
    from lib.jobs.live_table import number, rate

    word = state["status"]
    if state["update"] is None:
        return (state["run_dir"], word, *["-"] * 5)
    if state["stage"] not in (None, TRAINING):
        word = state["stage"]
    if state["failure"] not in (None, word):
        word = f"{word} ({state['failure']})"
    return (
        state["run_dir"],
        word,
        str(state["attempt"] or "-"),
        f"{state['update']}/{state['max_updates'] or '?'}",
        number(state["loss"]),
        number(state["val_loss"]),
        rate(state["tokens_per_s"]),
    )
