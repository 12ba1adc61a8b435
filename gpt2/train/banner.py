"""Start-up banner and closing line of a run's log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gpt2.plan.memory import memory
from gpt2.settings.schema import Resources
from gpt2.train.alignment import unaligned
from gpt2.train.run_context import RunContext
from gpt2.train.trainer import Trainer
from lib.cpus import usable_cores
from lib.gpu import backend_probe
from lib.gpu import device as devices
from lib.human import counted, size
from lib.jobs.run_files import EXPORT_FILE


def introduction(
    trainer: Trainer,
    context: RunContext,
    parameters: int,
    resumed_at: int | None,
    found: backend_probe.Startup,
) -> str:
    """The banner: the run, its device, kernels, data and batch."""
    job, split, settings = trainer.job, context.split, trainer.settings
    step = "" if job.step is None else f"step {job.step} "
    served = trainer.kernels
    rows = {
        "attention": served["attention_backend"],
        "MLP": served["mlp_backend"],
        **found.rows(),
        "precision": settings.optim.mixed_precision
        + (", compiled" if settings.resources.compile_model else ""),
        "data": f"{context.train.path.parent}, {context.train.tokens.size:,} "
        f"training and {context.val.tokens.size:,} validation tokens",
        "parameters": f"{parameters:,}",
        "batch": f"{settings.effective_batch} sequences of "
        f"{settings.model.block_size} tokens: micro batch {split.micro_batch} x "
        f"accumulation {split.accumulation}"
        + (f" x {split.world_size} ranks" if split.world_size > 1 else ""),
        "threads": f"{torch.get_num_threads()}",
        **_loaders(settings.resources),
        "start": ("fresh" if resumed_at is None else f"resumed at update {resumed_at}"),
    }
    if context.device.is_gpu:
        expected = memory(trainer.built, split.micro_batch).total
        rows["peak memory"] = f"about {size(expected)} by estimate"
    odd = unaligned(settings)
    if context.device.is_gpu and odd:
        rows["unaligned"] = f"not a multiple of 64, which is slower: {', '.join(odd)}"
    title = f"{step}{job.name}, seed {job.seed}, run {job.hash}: {job.title}"
    table = "\n".join(f"  {name:<14}{value}" for name, value in rows.items())
    return f"{title}\n{devices.describe(context.device)}\n{table}"


def _loaders(resources: Resources) -> dict[str, str]:
    """A row on the loader processes of all ranks, if there are any."""
    count, cores = resources.num_workers * resources.ddp_gpus_per_job, usable_cores()
    if not count:
        return {}
    warning = f", more than the {counted(cores, 'core')}" if count > cores else ""
    return {"data loading": counted(count, "worker") + warning}


def closing_line(result: Mapping[str, Any]) -> str:
    """Line for the log about the result of a finished run."""
    return (
        f"done: validation loss {result['val_loss']:.4f} (best "
        f"{result['best_val_loss']:.4f}), training loss {result['train_loss']:.4f}, "
        f"{result['seconds']:.1f} s in all, "
        f"{result['mean_epoch_seconds']:.1f} s per epoch; the model is in {EXPORT_FILE}"
    )
