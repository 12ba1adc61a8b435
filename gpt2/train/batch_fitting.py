"""The micro batch that memory allows: sought before training, halved where it ends."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

import torch

from gpt2.plan.jobs import Job
from gpt2.train import manifest
from gpt2.train.auto_batch import largest, within_margin
from gpt2.train.batch_split import BatchSplit, split_batch
from gpt2.train.failures import OutOfMemory, is_out_of_memory
from gpt2.train.record import Recorder
from gpt2.train.run_context import RunContext
from lib.gpu import device as devices


def fit(
    job: Job,
    recorder: Recorder,
    context: RunContext,
    one_update: Callable[[RunContext], None],
) -> RunContext:
    """The material with the micro batch that fits: an earlier attempt's, or the
    largest that ``one_update`` does not run out of memory with."""
    split, ranks = context.split, context.ranks
    known = manifest.settled_micro_batch(manifest.read(recorder.run_dir, job.hash))
    known = ranks.from_first(known)
    if known and split.effective_batch % (known * split.world_size) == 0:
        return _with_micro_batch(context, known)
    if not context.device.is_gpu:
        recorder.say(f"AUTO_BATCH is for GPUs: the micro batch is {split.micro_batch}")
        return context
    tried: list[str] = []

    def fits(split: BatchSplit) -> bool:
        good = _fits(replace(context, split=split), one_update)
        tried.append(f"{split.micro_batch} {'fits' if good else 'does not'}")
        return good

    found = min(ranks.gather(largest(split, fits).micro_batch))
    recorder.say(f"AUTO_BATCH: micro batch {found} ({', '.join(tried)})")
    return _with_micro_batch(context, found)


def _with_micro_batch(context: RunContext, micro_batch: int) -> RunContext:
    old = context.split
    split = split_batch(old.effective_batch, micro_batch, old.world_size, old.rank)
    return replace(context, split=split)


def _fits(context: RunContext, one_update: Callable[[RunContext], None]) -> bool:
    """Whether one update fits, with room to spare; nothing of it is left."""
    try:
        return within_margin(context.device, lambda: one_update(context))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        free_memory(context)
        devices.reset_peak_memory(context.device)


def shrink(
    job: Job,
    recorder: Recorder,
    context: RunContext,
    step: int,
    error: Exception | None,
) -> RunContext:
    """The material with half the micro batch, said and recorded."""
    split = less_memory(context.split, error)
    recorder.close_bar()
    recorder.say(
        f"out of memory after step {step} with micro batch "
        f"{context.split.micro_batch}: going on from the last checkpoint with "
        f"{split.micro_batch} and {split.accumulation} micro steps"
    )
    if context.ranks.is_first:
        manifest.note_out_of_memory(
            recorder.run_dir, job, context, step=step, micro_batch=split.micro_batch
        )
    return replace(context, split=split)


def less_memory(split: BatchSplit, error: Exception | None) -> BatchSplit:
    """Half the micro batch; OutOfMemory if there is nothing left to halve."""
    smaller = split.smaller()
    if smaller is None:
        raise OutOfMemory(
            "out of memory with a micro batch of one sequence: lower "
            "GPT2_BLOCK_SIZE or the model's size, use bf16, another attention "
            "kernel, or a device with more memory"
        ) from error
    return smaller


def free_memory(context: RunContext) -> None:
    """Give back what the failed attempt held, compiled code included."""
    gc.collect()
    torch.compiler.reset()
    if context.device.is_gpu:
        torch.cuda.empty_cache()
