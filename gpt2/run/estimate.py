"""Estimate time, memory and disk of a matrix from a few real updates of each cell.

A probe is the trainer itself on a shortened job. As many run at a time as later, so
that they slow each other down as the real runs will.

Torch-free. gpt2/report/estimates.py compares estimates with the actual costs.
"""

from __future__ import annotations

import dataclasses
import heapq
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt2.plan.budget import budget
from gpt2.plan.jobs import Job, Plan, cells
from gpt2.plan.names import ESTIMATES_FILE
from gpt2.plan.run_length import seconds_of
from lib import atomic_files
from lib.hashing import identity
from lib.human import counted, duration, size
from lib.jobs import run_files
from lib.jobs.options import Options, View
from lib.jobs.process import Task
from lib.jobs.scheduler import Scheduler
from lib.output import EXIT_INTERRUPTED
from lib.terminal import table

SCHEMA = 2
STEPS = 8  # of a probe
COLD = 3  # of these, updates that are not counted: allocation, autotuning
CHECKPOINTS_KEPT = 2
SPARE = 64 * 2**20  # bytes; logs, metrics, what else is on the disk


# ---- measuring ------------------------------------------------------------------


def probe_job(job: Job, updates: int = STEPS) -> Job:
    """The first updates of a job with one evaluation and one checkpoint. Pruning is
    left out: its schedule does not fit so few updates."""
    short = job.settings.replace(
        max_iters=updates,
        time_budget="",
        warmup_steps=0,
        eval_interval=updates,
        log_interval=1,
        checkpoint_interval=updates,
        keep_checkpoints=True,
        keep_stable=False,
        stable_from="",
        prune_method="none",
        profile=False,
        **dict.fromkeys(("with_trackio", "with_wandb", "with_tensorboard"), False),
    )
    return dataclasses.replace(job, settings=short)


def probe(
    plan: Plan, tasks: Sequence[Task], options: Options, view: View, folder: Path
) -> list[dict[str, Any]]:
    """A record for each cell of the plan; none if it was stopped before the end.

    tasks: one of ``probe_job`` for each cell, with its run in ``folder``.
    """
    scheduler = Scheduler(tasks, options, view)
    if scheduler.run() == EXIT_INTERRUPTED:
        return []
    wall = {c.task.name: c.outcome.seconds for c in scheduler.cells if c.outcome}
    return [
        measure(group[0], folder / group[0].run_dir, wall.get(group[0].run_dir, 0.0))
        for group in cells(plan.jobs)
    ]


def measure(job: Job, run_dir: Path, wall: float) -> dict[str, Any]:
    """Measured costs of a probe of ``job``, and the estimate for the whole job.

    Seconds: start-up and import, each update, each evaluation, each checkpoint.
    """
    status = run_files.read_status(run_dir)
    record: dict[str, Any] = {"name": job.cell, "hash": hash_of(job)}
    if status["status"] != "done":
        why = f"{status['failure'] or status['status']}: {status['message']}"
        return {**record, "seconds": None, "message": why}
    records, result = (
        atomic_files.read_jsonl(run_dir / run_files.METRICS_FILE),
        status["result"],
    )
    trained = [r["seconds"] for r in records if r["kind"] == "train"]
    scored = [r["seconds"] for r in records if r["kind"] == "eval"]
    step = (trained[-1] - trained[COLD - 1]) / (STEPS - COLD)
    evaluation = max(0.0, scored[-1] - trained[-1])
    save = max(0.0, result["seconds"] - scored[-1])
    return {
        **record,
        "seconds_per_step": step,
        "seconds_per_evaluation": evaluation,
        "seconds_per_checkpoint": save,
        "seconds_to_start": max(0.0, wall - result["seconds"]),
        "peak_memory_bytes": result["peak_memory_bytes"],
        **({"mfu": result["mfu"]} if "mfu" in result else {}),
        **_gpu(run_dir, result),
        **_disk(job, run_dir),
        "seconds": _whole(job, step, evaluation, save),
    }


def _whole(job: Job, step: float, evaluation: float, save: float) -> float:
    """Seconds of the whole job in the training loop, without start-up."""
    s = job.settings
    n = s.optim.max_iters
    if s.optim.time_budget:
        n = max(1, int(seconds_of(s.optim.time_budget) / step))
    evaluations = 2 + (n - 1) // s.data.eval_interval
    saves = 1 + (n - 1) // s.resources.checkpoint_interval
    return n * step + evaluations * evaluation + saves * save


def _gpu(run_dir: Path, result: Mapping[str, Any]) -> dict[str, int]:
    """Peak memory that torch reserved, and that of the GPU; {} on a CPU."""
    reserved = result.get("reserved_memory_bytes")
    if reserved is None:
        return {}
    device = atomic_files.read_json(run_dir / run_files.MANIFEST_FILE)["device"]
    total = device["memory_bytes"]
    return {"gpu_reserved_bytes": reserved, "gpu_memory_bytes": total}


def _disk(job: Job, run_dir: Path) -> dict[str, int]:
    """Bytes of a checkpoint, and of a finished run."""
    sizes = {
        path.relative_to(run_dir): path.stat().st_size
        for path in run_dir.rglob("*")
        if path.is_file()
    }
    saved = sum(n for path, n in sizes.items() if path.parts[0] == "ckpt")
    kept = CHECKPOINTS_KEPT * job.settings.resources.keep_checkpoints
    kept += job.settings.resources.keep_stable
    stays = sum(sizes.values()) + (kept - 1) * saved
    return {"checkpoint_bytes": saved, "disk_bytes": stays}


def hash_of(job: Job) -> str:
    """Identity of all settings that affect time and memory, resources included."""
    settings = job.settings.replace(steps=(), seeds=(), output_dir="", data_dir="")
    return identity(settings.to_dict())


# ---- the file -------------------------------------------------------------------


def write(
    output_dir: Path,
    plan: Plan,
    records: Sequence[Mapping[str, Any]],
    slots: int,
    sharing: str = "",
) -> dict[str, Any]:
    """estimates.json from the records of ``probe``; its content.

    sharing: what is known about several runs on a GPU.
    """
    by_cell = {record["name"]: record for record in records}
    found = [by_cell[job.cell] for job in plan.jobs]
    jobs = [
        {"run_dir": job.run_dir, "hash": job.hash, "seconds": record["seconds"]}
        for job, record in zip(plan.jobs, found, strict=True)
    ]
    whole = [
        record["seconds"] + record["seconds_to_start"]
        for record in found
        if record["seconds"] is not None
    ]
    estimate = {
        "schema": SCHEMA,
        "made": run_files.now(),
        "steps": STEPS,
        "slots": slots,
        "sharing": sharing,
        "cells": [dict(record) for record in records],
        "jobs": jobs,
        "seconds": makespan(whole, slots) if len(whole) == len(jobs) else None,
    }
    atomic_files.atomic_write_json(output_dir / ESTIMATES_FILE, estimate)
    return estimate


def read(output_dir: Path) -> dict[str, Any]:
    """estimates.json; {} if there is none or it is damaged."""
    try:
        found = atomic_files.read_json(output_dir / ESTIMATES_FILE)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and found.get("schema") == SCHEMA else {}


def makespan(seconds: Iterable[float], slots: int) -> float:
    """When the last of these ends, distributed over the slots, longest first."""
    ends = [0.0] * slots
    for length in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


def known(output_dir: Path, jobs: Iterable[Job]) -> list[Mapping[str, Any] | None]:
    """For each job the record of its cell with these settings; None: not probed."""
    cells = reversed(read(output_dir).get("cells", []))
    probed = {str(r.get("hash")): r for r in cells if r.get("seconds") is not None}
    return [probed.get(hash_of(job)) for job in jobs]


def probed_seconds(output_dir: Path, jobs: Iterable[Job]) -> list[float] | None:
    """Estimated seconds of each job in the training loop; None if some cell was not
    probed with these settings."""
    records = known(output_dir, jobs)
    seconds = [record["seconds"] for record in records if record is not None]
    return None if len(seconds) < len(records) else seconds


# ---- the disk -------------------------------------------------------------------


def disk_needed(output_dir: Path, missing: Sequence[Job], slots: int) -> int:
    """Bytes that the missing runs will need, with ``slots`` at a time: as probed, else
    a lower bound."""
    stays, passes = 0, []
    for job, probed in zip(missing, known(output_dir, missing), strict=True):
        kept = CHECKPOINTS_KEPT * job.settings.resources.keep_checkpoints
        weights = 4 * budget(job.settings).parameters
        files = 1 + kept + job.settings.resources.keep_stable
        least = {"checkpoint_bytes": weights, "disk_bytes": files * weights}
        record = probed or least
        stays += record["disk_bytes"]
        # while one more is written, the older ones are still there
        passes.append((CHECKPOINTS_KEPT + 1 - kept) * record["checkpoint_bytes"])
    return SPARE + stays + sum(heapq.nlargest(slots, passes))


def require_space(plan: Plan, missing: Sequence[Job], slots: int) -> None:
    """Raise ValueError if the disk of the results cannot hold what is missing."""
    needed = disk_needed(plan.output_dir, missing, slots)
    free = shutil.disk_usage(plan.output_dir).free
    if missing and free < needed:
        raise ValueError(
            f"{plan.output_dir}: the missing runs need at least {size(needed)}, but "
            f"its disk has {size(free)} free; nothing was started. Free some space, "
            "choose another OUTPUT_DIR, or run fewer steps or seeds"
        )


# ---- as text --------------------------------------------------------------------


def render(estimate: Mapping[str, Any]) -> str:
    """The table of an estimate, and the total."""
    sizes = ("memory", "checkpoint", "disk")
    head = ("cell", "update", "evaluation", "start", *sizes, "run")
    rows = [_row(record) for record in estimate["cells"]]
    spare = ("checkpoint", "start", "evaluation", "disk")
    text = table(head, rows, left=(0,), spare=spare)
    jobs, slots = len(estimate["jobs"]), estimate["slots"]
    if estimate["seconds"] is None:
        failed = [c for c in estimate["cells"] if c["seconds"] is None]
        lines = [f"{c['name']}: the probe failed ({c['message']})" for c in failed]
        return text + "\n".join(lines) + "\n"
    runs = f"{counted(jobs, 'run')}, {slots} at a time"
    return (
        f"{text}{runs}: about {duration(estimate['seconds'])} on this machine, from "
        f"{estimate['steps']} updates of each\n"
        + (f"{estimate['sharing']}\n" if estimate["sharing"] else "")
    )


def _row(record: Mapping[str, Any]) -> tuple[str, ...]:
    if record["seconds"] is None:
        return (record["name"], *["-"] * 7)
    memory = record["peak_memory_bytes"]
    return (
        record["name"],
        f"{1000 * record['seconds_per_step']:,.1f} ms",
        f"{record['seconds_per_evaluation']:.2f} s",
        f"{record['seconds_to_start']:.1f} s",
        size(memory) if memory else "-",
        size(record["checkpoint_bytes"]),
        size(record["disk_bytes"]),
        duration(record["seconds"] + record["seconds_to_start"]),
    )


def price(plan: Plan) -> str:
    """One line on the time of a plan in the training loop; "" if it is unknown."""
    seconds = training_seconds(plan)
    if seconds is None:
        return ""
    return f"about {duration(seconds)} of training in all, by `make estimate`"


def training_seconds(plan: Plan) -> float | None:
    """Time of all jobs in the training loop, as probed earlier; None: not known."""
    seconds = probed_seconds(plan.output_dir, plan.jobs)
    return None if seconds is None else sum(seconds)
