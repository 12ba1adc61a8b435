"""Settings that the devices of this machine, or of a Ray cluster, cannot honour.

Torch-free, except that another process asks torch before a refusal.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache

from gpt2.plan.jobs import Job, Plan
from gpt2.plan.readers import READERS
from gpt2.settings.checks import check
from gpt2.settings.schema import SYMBOL_OF, Resources
from gpt2.settings.shown import shown_value
from lib.cpus import usable_cores
from lib.gpu_architectures import RAY_BEFORE_AMPERE, has_bf16
from lib.human import counted
from lib.jobs.slots import VISIBLE, architectures, find_gpus, gpu_names
from lib.kconfig.config_py import DEFAULT, Config

RAY_KIND = "accelerator_type:"
ANY_GPU = ("auto", "cuda", "rocm")  # values of DEVICE that name no particular GPU


def without_effect_here(plan: Plan, config: Config) -> list[str]:
    """A line on the settings that only a GPU would read, if there is none here."""
    base = plan.base
    if not is_cpu_here(base.resources):
        return []
    on_cpu = base.replace(device="cpu")
    symbols = [
        SYMBOL_OF[name]
        for reader in READERS
        if reader.is_on(base) and not reader.is_on(on_cpu)
        for name in reader.fields
    ]
    given = [symbol for symbol in symbols if config.origin(symbol) != DEFAULT]
    if not given:
        return []
    words = ", ".join(f"{one}={shown_value(config.values[one])}" for one in given)
    why = "no GPU is found, and runs train on the CPU"
    return [f"{words}: no effect on this machine: {why}"]


def too_many_loaders(plan: Plan) -> list[str]:
    """A line on loader processes that share cores of this machine."""
    asked = plan.base.resources
    runs = min(len(plan.jobs), runs_at_a_time(asked))
    processes, cores = runs * asked.ddp_gpus_per_job * asked.num_workers, usable_cores()
    if asked.engine == "ray" or processes <= cores:
        return []
    return [
        f"NUM_WORKERS={asked.num_workers}: {processes} loader processes at a time "
        f"share {counted(cores, 'core')} of this machine with the training"
    ]


def runs_at_a_time(asked: Resources) -> int:
    """Number of runs that train at a time on this machine, if it can train any."""
    if asked.parallel_jobs or asked.device not in ANY_GPU:
        return asked.parallel_jobs or 1
    gpus = find_gpus(os.environ)
    names = gpus and (gpu_names(asked.gpus) or gpus.names)
    return max(1, len(names or ()) // asked.ddp_gpus_per_job)


def require_here(plan: Plan) -> None:
    """Raise ValueError for what the devices of this machine cannot do."""
    asked = plan.base.resources
    if is_cpu_here(asked):
        refusal = refused_on_cpu(plan, "here, as torch sees no GPU")
        if refusal and not torch_sees_a_gpu():
            raise ValueError(refusal)
    elif job := first_in_bf16(plan):
        if lacking := gpu_without_bf16():
            raise ValueError(no_bf16(job, f"the GPU of this machine ({lacking})"))


def require_on(plan: Plan, machines: Iterable[Mapping[str, float]]) -> None:
    """Raise ValueError for what the machines of a Ray cluster cannot do.

    machines: as Cluster.machines(). Ray chooses among them, so all must be unable.
    """
    with_gpu = [machine for machine in machines if "GPU" in machine]
    if plan.base.resources.device == "auto" and not with_gpu:
        if refusal := refused_on_cpu(plan, "on this Ray cluster, which has no GPU"):
            raise ValueError(refusal)
    kinds = [
        {name.partition(":")[2] for name in machine if name.startswith(RAY_KIND)}
        for machine in with_gpu
    ]
    lack = bool(kinds) and all(kind and kind <= RAY_BEFORE_AMPERE for kind in kinds)
    if lack and (job := first_in_bf16(plan)):
        names = ", ".join(sorted(set().union(*kinds)))
        raise ValueError(no_bf16(job, f"the GPU of this Ray cluster ({names})"))


def refused_on_cpu(plan: Plan, place: str) -> str:
    """Why a job cannot train where DEVICE=auto is the CPU; "" if all can.

    Settings of each job count, as steps and sweeps set values of their own.
    """
    jobs = ((f"{job.cell}: ", job.settings) for job in plan.jobs)
    for where, settings in (("", plan.base), *jobs):
        try:
            check(settings.replace(device="cpu"))
        except ValueError as error:
            return f"{where}DEVICE=auto is the CPU {place}: {error}"
    return ""


def first_in_bf16(plan: Plan) -> Job | None:
    """A job that computes in bf16, on a GPU if there is one."""
    if plan.base.resources.device == "cpu":
        return None
    jobs = (job for job in plan.jobs if job.settings.optim.mixed_precision == "bf16")
    return next(jobs, None)


def gpu_without_bf16() -> str:
    """Architecture of the GPUs here if none of them has bf16, else "". Where some have
    it, their names do not say which: CUDA counts by speed, the driver by place."""
    gpus = find_gpus(os.environ)
    found = architectures(gpus.backend) if gpus else []
    return "" if any(map(has_bf16, found)) else ", ".join(dict.fromkeys(found))


def no_bf16(job: Job, gpu: str) -> str:
    """Refusal of a job for GPUs that lack bf16."""
    symbol = SYMBOL_OF["mixed_precision"]
    return (
        f"{job.cell}: {symbol}=bf16, but {gpu} has no bf16: use "
        "MIXED_PRECISION_FP16=y, or MIXED_PRECISION=n for fp32"
    )


def is_cpu_here(asked: Resources) -> bool:
    """Whether DEVICE=auto is the CPU, as far as can be seen without torch."""
    is_local = asked.device == "auto" and asked.engine != "ray"
    return is_local and find_gpus(os.environ) is None


def torch_sees_a_gpu() -> bool:
    """Whether torch finds a GPU, asked once in another process, as the runner does not
    import torch."""
    return _torch_sees_any(tuple(os.environ.get(name) for name in VISIBLE.values()))


@cache
def _torch_sees_any(visible: tuple[str | None, ...]) -> bool:
    """The same where the variables of ``VISIBLE`` have these values."""
    program = "import os, torch; os._exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", program]).returncode == 0
