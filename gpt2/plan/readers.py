"""Which settings a model reads, by the parts of the program that read them.

Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from gpt2.mechanisms import mechanisms
from gpt2.mechanisms.spec import Mechanism, Reads
from gpt2.settings.schema import IDENTITY_PARTS, PART_OF, Settings
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


def _has_kernels(field: str, everywhere: Sequence[str], settings: Settings) -> bool:
    """Whether kernels asked for by name can be used; ``everywhere``: also on a CPU."""
    resources = settings.resources
    return resources.device != "cpu" or getattr(resources, field) in everywhere


READERS = (
    *_of_mechanisms(),
    *_of_optimizers(),
    Reader(
        "has the schedule wsd",
        ("lr_decay_share", "lr_decay_shape"),
        lambda s: s.optim.lr_schedule == "wsd",
    ),
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
            "gpus",
            "jobs_per_gpu",
        ),
        lambda s: s.resources.device != "cpu",
    ),
    Reader(
        "runs on a GPU or uses kernels that need none",
        ("attention_backend",),
        partial(_has_kernels, "attention_backend", ("auto", "reference", "sdpa")),
    ),
    Reader(
        "runs on a GPU or uses kernels that need none",
        ("mlp_backend",),
        partial(_has_kernels, "mlp_backend", ("auto", "torch")),
    ),
    Reader(
        "is trained by several ranks",
        ("ddp_backend",),
        lambda s: s.resources.ddp_gpus_per_job > 1,
    ),
)


def unread(settings: Settings) -> list[str]:
    """Fields of the identity that nothing reads with these settings."""
    is_read: dict[str, bool] = {}
    for reader in READERS:
        on = reader.is_on(settings)
        for name in reader.fields:
            is_read[name] = is_read.get(name, False) or on
    return [n for n, on in is_read.items() if not on and PART_OF[n] in IDENTITY_PARTS]
