"""Report settings that no job of a plan reads.

A preset is used with many sets of steps, so this is not an error, but a result must not
be mistaken for the effect of a setting that was not read. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from gpt2.mechanisms import mechanisms
from gpt2.mechanisms.spec import Mechanism, Reads
from gpt2.plan.jobs import Plan
from gpt2.settings.schema import IDENTITY_PARTS, PART_OF, SYMBOL_OF, Settings
from lib.kconfig.config_py import Config
from lib.optim.registry import OPTIMIZERS


@dataclass(frozen=True, slots=True)
class Reader:
    """Reader of some fields: its name as the end of "no job ...", and when it is on."""

    what: str
    fields: tuple[str, ...]
    is_on: Callable[[Settings], bool]


def _of_mechanisms() -> Iterator[Reader]:
    for mechanism in mechanisms():
        for reads in mechanism.readers():
            is_on = partial(_is_read, mechanism, reads)
            yield Reader(reads.what, reads.fields, is_on)


def _is_read(mechanism: Mechanism, reads: Reads, settings: Settings) -> bool:
    return mechanism.reads_on(settings.mechanisms, reads)


def _of_optimizers() -> Iterator[Reader]:
    """Readers for settings that not all optimizers read."""
    users: dict[str, list[str]] = {}
    for name, spec in OPTIMIZERS.items():
        for field in (*spec.reads, *(own.name for own in spec.own)):
            users.setdefault(field, []).append(name)
    for field, names in users.items():
        what = names[0] if len(names) == 1 else f"one of {', '.join(names)}"
        yield Reader(f"uses {what}", (field,), partial(_is_used, names))


def _is_used(names: list[str], settings: Settings) -> bool:
    return settings.optim.optimizer in names


READERS = (
    *_of_mechanisms(),
    *_of_optimizers(),
    Reader(
        "is pruned by AdamWPrune's state",
        ("adamwprune_variant",),
        lambda s: bool(s.score_variant),
    ),
    Reader(
        "is pruned",
        (
            "prune_sparsity",
            "prune_interval",
            "prune_warmup",
            "prune_ramp_end",
            "prune_scope",
        ),
        lambda s: s.pruning.prune_method != "none",
    ),
    Reader(
        "has workers to load its data",
        ("prefetch_factor", "persistent_workers"),
        lambda s: s.resources.num_workers > 0,
    ),
    Reader(
        "runs on a GPU",
        (
            "cuda_graphs",
            "auto_batch",
            "gpu_memory",
            "tf32",
            "cudnn_benchmark",
            "gpu_warmup",
            "alloc_conf",
            "pin_memory",
            "jobs_per_gpu",
        ),
        lambda s: s.resources.device != "cpu",
    ),
    Reader(
        "is trained by several ranks",
        ("ddp_backend",),
        lambda s: s.resources.ddp_gpus_per_job > 1,
    ),
)


def idle(plan: Plan, config: Config) -> list[str]:
    """Line for each setting of ``config`` that has no effect on any job, with its
    origin."""
    found = []
    for name, symbol in SYMBOL_OF.items():
        origin = config.origins.get(symbol)
        why = "" if origin is None else _why_idle(plan, name, origin)
        if name == "steps_file" and config.values[symbol] and not _has_own(plan):
            why = "STEPS names none of its steps"
        if why:
            value = config.values[symbol]
            found.append(f"{symbol}={value} ({origin}) has no effect: {why}")
    return found


def _has_own(plan: Plan) -> bool:
    return any(job.step in plan.registry.own for job in plan.jobs)


def _why_idle(plan: Plan, name: str, origin: str) -> str:
    """Reason why a field set at ``origin`` has no effect on any job; "" if it has."""
    reader = next((r for r in READERS if name in r.fields), None)
    jobs = [job for job in plan.jobs if reader is None or reader.is_on(job.settings)]
    if reader is not None and not jobs:
        return f"no job {reader.what}"
    origins = dict.fromkeys(job.origins[name] for job in jobs)
    if PART_OF[name] in IDENTITY_PARTS and origin not in origins:
        return f"the jobs have it from {', '.join(origins)}"
    return ""
