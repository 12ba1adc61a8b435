"""Trial of several runs at a time on a GPU: two of them compared with one.

A small model leaves a GPU idle between its kernels, and two runs of it may make more
updates than one. `make estimate` trains the first cell alone and then twice at a time
on one GPU, for SECONDS each, and counts updates while both train. Torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt2.plan.jobs import Job
from gpt2.run import estimate
from gpt2.run.gpu_sharing import available, taken
from gpt2.run.tasks import task_of
from gpt2.settings.schema import Resources
from lib import atomic_files
from lib.jobs import run_files
from lib.jobs.options import Options, View
from lib.jobs.phases import phases_of
from lib.jobs.scheduler import Scheduler
from lib.jobs.slots import are_shared, place_of
from lib.output import EXIT_OK

SECONDS = 15.0  # of training in each trial
RECORDS = 100  # of a trial
OVERLAP = 0.5  # of a trial, in which both must have trained
BUSY = 0.3  # MFU from which one run keeps a GPU busy; by rule of thumb


def sharing_line(
    jobs: Sequence[Job],
    record: Mapping[str, Any],
    options: Options,
    view: View,
    folder: Path,
) -> str:
    """Line about several runs on a GPU; "" where the question does not arise.

    record: of the probe of the first job.
    """
    slots, asked = options.slots, jobs[0].settings.resources
    if asked.engine == "ray" or not slots or not all(map(place_of, slots)):
        return ""
    if are_shared(slots):
        return (
            "runs share GPUs here: probes of a few updates hardly overlap, so that the "
            "estimate does not show how runs slow each other down"
        )
    if len(jobs) <= len(slots) or record["seconds"] is None:
        return ""
    if why := _hopeless(record, asked):
        return f"several runs on a GPU were not tried: {why}"
    gain = _gain(jobs[0], record, options, view, folder)
    if gain is None:
        return "several runs on a GPU were tried, without an answer"
    return (
        f"2 runs of {jobs[0].cell} at a time on a GPU make {gain:.2f} times the "
        f"updates of one. JOBS={2 * len(slots)} runs them so; no run prepares ahead "
        "then, and speeds of runs cannot be compared"
    )


def _hopeless(record: Mapping[str, Any], asked: Resources) -> str:
    """Why two runs of this probe cannot be of use on a GPU; "" if they may."""
    mfu, need = record.get("mfu"), taken(record)
    if mfu is not None and mfu >= BUSY:
        return f"one keeps it busy (MFU {mfu:.0%})"
    if asked.jobs_per_gpu >= 2:
        return ""
    if need is None:
        return "their memory was not measured (JOBS_PER_GPU=2 does without)"
    return "" if 2 * need <= available([record]) else "two do not fit in its memory"


def _gain(
    job: Job,
    record: Mapping[str, Any],
    options: Options,
    view: View,
    folder: Path,
) -> float | None:
    """Updates per second of two runs at a time, relative to one alone."""
    updates = max(2 * RECORDS, math.ceil(SECONDS / record["seconds_per_step"]))
    short = estimate.probe_job(job, updates)
    settings = short.settings.replace(log_interval=updates // RECORDS, as_trained=False)
    rates = []
    for count in (1, 2):
        names = [f"trial{count}{n}/{job.run_dir}" for n in range(count)]
        trials = [replace(short, settings=settings, run_dir=name) for name in names]
        tasks = [task_of(trial, folder, "skipped") for trial in trials]
        place = replace(options, slots=[options.slots[0]] * count, ahead=0)
        if Scheduler(tasks, place, view).run() != EXIT_OK:
            return None
        rates.append(rate([updates_of(folder / name) for name in names]))
    alone, together = rates
    return together / alone if alone and together else None


def updates_of(run_dir: Path) -> list[tuple[float, int]]:
    """(Unix seconds, updates made) of each record of a run that was not resumed."""
    records = atomic_files.read_jsonl(run_dir / run_files.METRICS_FILE)
    trained = [r for r in records if r.get("kind") == "train"]
    last = {name: at for name, at, _ in phases_of(records)}.get("last_update")
    if last is None or not trained:
        return []
    return [(last + r["seconds"] - trained[-1]["seconds"], r["step"]) for r in trained]


def rate(runs: Sequence[Sequence[tuple[float, int]]]) -> float | None:
    """Updates per second of all runs, in the time in which all of them trained; None
    if that is less than OVERLAP of the longest."""
    if not all(len(run) > 1 for run in runs):
        return None
    begin, end = max(run[0][0] for run in runs), min(run[-1][0] for run in runs)
    longest = max(run[-1][0] - run[0][0] for run in runs)
    if end - begin < OVERLAP * longest or end <= begin:
        return None
    made = sum(_at(run, end) - _at(run, begin) for run in runs)
    return made / (end - begin)


def _at(run: Sequence[tuple[float, int]], time: float) -> float:
    """Updates made until a time between the first record and the last."""
    after = next(n for n, (at, _) in enumerate(run) if at >= time)
    if not after:
        return float(run[0][1])
    (t0, n0), (t1, n1) = run[after - 1], run[after]
    return n0 + (n1 - n0) * (time - t0) / (t1 - t0)
