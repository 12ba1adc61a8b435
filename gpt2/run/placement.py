"""Where the runs of a matrix execute: slots on this machine, or a Ray cluster.

Torch-free. lib/jobs/slots.py and lib/jobs/ray_engine.py do the work; the settings
that a user would change are named here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from gpt2.plan.jobs import Job, Plan
from gpt2.run.device_limits import (
    ANY_GPU,
    require_here,
    require_on,
    torch_sees_a_gpu,
)
from gpt2.run.estimate import probed_seconds
from gpt2.run.prepare_ahead import Ahead, runs_ahead
from gpt2.run.results_dir import STOP_FILE
from gpt2.run.sessions import note_lost
from gpt2.settings.checks import naming
from gpt2.settings.rerun_commands import matrix_command
from gpt2.settings.schema import Resources
from lib.cpus import usable_cores
from lib.human import duration, gpu_hours
from lib.jobs import ray_engine, slots
from lib.jobs.cards import Cards
from lib.jobs.options import Launch, Options
from lib.jobs.process import Attempt, Patience


def scheduler_options(plan: Plan) -> Options:
    """Options of the scheduler for the jobs of a matrix.

    Raises ValueError, naming the settings, if no device is found for the jobs or the
    devices cannot do what they ask for.
    """
    asked = plan.base.resources
    places: Sequence[Mapping[str, str]]
    launch: Launch
    if asked.engine == "ray":
        cluster = connect(asked)
        require_on(plan, cluster.machines())
        places, launch = ray_slots(asked, cluster), cluster.launch
    else:
        require_here(plan)
        places, launch = local_slots(asked), Attempt
    return Options(
        slots=places,
        launch=launch,
        patience=Patience(hang=asked.hang_timeout, factor=asked.hang_factor),
        fail_fast=asked.fail_fast,
        longest_first=len(places) > 1,
        stop_file=plan.output_dir / STOP_FILE,
        cards=Cards(partial(note_lost, plan.output_dir)),
    )


def connect(asked: Resources) -> ray_engine.Cluster:
    """The Ray cluster. Raises ValueError if it cannot be reached."""
    with naming(
        f"RAY_ADDRESS={asked.ray_address!r}",
        "Start a cluster with `ray start --head`, set RAY_AUTH_MODE=token if it has a "
        "token, or use RAY_ADDRESS=local for this machine alone",
    ):
        return ray_engine.Cluster(asked.ray_address)


def ray_slots(asked: Resources, cluster: ray_engine.Cluster) -> list[Mapping[str, str]]:
    """A slot for each run at a time.

    Raises ValueError if no machine of the cluster is enough for a run.
    """
    ranks, threads = asked.ddp_gpus_per_job, asked.threads or 1
    on_gpu = asked.device in ANY_GPU
    if asked.device == "auto":
        on_gpu = any("GPU" in machine for machine in cluster.machines())
    cpus, gpus = ranks * (threads + asked.num_workers), ranks if on_gpu else 0
    with naming(
        "CPU_THREADS, NUM_WORKERS, DDP_GPUS_PER_JOB, DEVICE",
        "Ask for less, or add a machine",
    ):
        cluster.require(cpus=cpus, gpus=gpus)
    print(f"the Ray cluster has {cluster.describe()}", flush=True)
    hidden = {} if on_gpu else slots.no_gpu()
    slot = {"OMP_NUM_THREADS": str(threads), **hidden}
    every = int(cluster.gpus // ranks) if on_gpu else 1
    return [slot] * (asked.parallel_jobs or max(1, every))


def local_slots(asked: Resources) -> list[dict[str, str]]:
    """One environment for each run at a time: its GPUs, its share of the cores."""
    gpus = slots.find_gpus(os.environ) if asked.device in ANY_GPU else None
    found: list[dict[str, str]] = [{} for _ in range(asked.parallel_jobs or 1)]
    if gpus is not None:
        found = gpu_slots(asked, gpus)
    elif asked.gpus:
        raise ValueError(
            f"GPUS={asked.gpus!r}, but with DEVICE={asked.device!r} no GPU can be used"
        )
    elif asked.device not in ("auto", "cpu") and not torch_sees_a_gpu():
        raise ValueError(
            f"DEVICE={asked.device!r}, but torch sees no GPU here: use DEVICE=auto or "
            "DEVICE=cpu, or install the torch that fits your card and its driver"
        )
    if asked.threads or "OMP_NUM_THREADS" in os.environ:
        return found
    return slots.share_cores(found, usable_cores(), asked.ddp_gpus_per_job)


def gpu_slots(asked: Resources, visible: slots.Gpus) -> list[dict[str, str]]:
    """One environment for each run at a time; more runs than GPUs share them evenly."""
    per_job = asked.ddp_gpus_per_job
    per_gpu = asked.jobs_per_gpu  # 0: as many as memory allows
    with naming(f"GPUS={asked.gpus!r}"):
        gpus = slots.choose_gpus(visible, asked.gpus)
    with naming(f"DDP_GPUS_PER_JOB={per_job}"):
        sets = slots.gpu_sets(gpus, per_job)
    jobs = asked.parallel_jobs or len(sets)
    if per_gpu and jobs > per_gpu * len(sets):
        raise ValueError(
            f"PARALLEL_JOBS={jobs} (JOBS), but at JOBS_PER_GPU={per_gpu} and "
            f"DDP_GPUS_PER_JOB={per_job} only {per_gpu * len(sets)} jobs have a place: "
            "raise JOBS_PER_GPU (0: as memory allows), or run fewer jobs at a time"
        )
    return [sets[number % len(sets)] for number in range(jobs)]


def describe(jobs: Sequence[Job], options: Options, ahead: Ahead, root: Path) -> str:
    """Where these jobs run, for how long, and how many prepare meanwhile; "" on a CPU
    where none does. root: the results folder, with what `make estimate` found."""
    places = [place for slot in options.slots if (place := slots.place_of(slot))]
    lines = []
    if places and jobs:
        names = ", ".join(dict.fromkeys(places))
        time = f"`{matrix_command('estimate')}` says how long"
        if seconds := probed_seconds(root, jobs):
            time = f"about {duration(sum(seconds) / len(places))} by estimate"
        lines.append(
            f"{len(jobs)} jobs on GPU {names}, {len(places)} at a time; {time}"
        )
    return "\n".join([*lines, ahead.describe()]).strip()


def price_of_gpus(options: Options, seconds: float, price: float | None) -> str:
    """GPU hours that these slots take in so many seconds, and their cost; "" where the
    GPUs are not known: without any, and on Ray."""
    names = {name for slot in options.slots for name in slots.place_of(slot).split(",")}
    gpus = len(names - {""})
    return gpu_hours(gpus * seconds / 3600, price) if gpus else ""


def describe_plan(plan: Plan) -> str:
    """As describe(), of all jobs of a plan, if GPUs of this machine run them.

    Raises ValueError as scheduler_options().
    """
    options = scheduler_options(plan)
    if not any(map(slots.place_of, options.slots)):
        return ""
    ahead = runs_ahead(plan.jobs, options)
    return describe(plan.jobs, options, ahead, plan.output_dir)
