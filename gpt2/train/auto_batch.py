"""AUTO_BATCH: the largest micro batch that fits, at the same effective batch."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

import torch

from gpt2.train.batch_split import BatchSplit
from gpt2.train.failures import is_out_of_memory
from gpt2.train.manifest import Manifest
from gpt2.train.record import Recorder
from gpt2.train.run_context import RunContext
from lib.gpu import device as devices
from lib.gpu.device import DeviceInfo

MARGIN = 0.92  # of the memory that is there; evaluation and fragments need some


def fit(
    context: RunContext,
    manifest: Manifest,
    recorder: Recorder,
    one_update: Callable[[RunContext], None],
) -> BatchSplit:
    """The split of an earlier attempt, or the one with the largest micro batch that
    ``one_update`` does not run out of memory with; log and all ranks agree on it."""
    split, ranks = context.split, context.ranks
    known = ranks.from_first(manifest.settled_micro_batch())
    if known and split.effective_batch % (known * split.world_size) == 0:
        return split.with_micro_batch(known)
    if not context.device.is_gpu:
        recorder.say(f"AUTO_BATCH is for GPUs: the micro batch is {split.micro_batch}")
        return split
    tried: list[str] = []

    def fits(split: BatchSplit) -> bool:
        good = _fits(replace(context, split=split), one_update)
        tried.append(f"{split.micro_batch} {'fits' if good else 'does not'}")
        return good

    found = min(ranks.gather(largest(split, fits).micro_batch))
    recorder.say(f"AUTO_BATCH: micro batch {found} ({', '.join(tried)})")
    return split.with_micro_batch(found)


def _fits(context: RunContext, one_update: Callable[[RunContext], None]) -> bool:
    """Whether one update fits, with room to spare; it leaves nothing behind."""
    try:
        return within_margin(context.device, lambda: one_update(context))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        free_memory()
        devices.reset_peak_memory(context.device)


def free_memory() -> None:
    """Give back what nothing refers to any more, compiled code included."""
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def largest(split: BatchSplit, fits: Callable[[BatchSplit], bool]) -> BatchSplit:
    """The largest cut of the effective batch that fits, tried by doubling or halving.

    Begins with ``split`` and tries divisors only. Where even one sequence does not
    fit, the cut of one is returned: the training itself then says why.
    """
    if fits(split):
        while (bigger := split.larger()) is not None and fits(bigger):
            split = bigger
        return split
    while (smaller := split.smaller()) is not None:
        split = smaller
        if fits(split):
            break
    return split


def within_margin(device: DeviceInfo, attempt: Callable[[], object]) -> bool:
    """Whether ``attempt`` kept to its MARGIN of the GPU's memory. Out-of-memory
    errors are passed on."""
    torch.cuda.reset_peak_memory_stats(device.torch_device)
    free, _ = torch.cuda.mem_get_info(device.torch_device)
    there = free + torch.cuda.memory_reserved(device.torch_device)
    attempt()
    torch.cuda.synchronize(device.torch_device)
    peak = torch.cuda.max_memory_reserved(device.torch_device)
    return peak <= MARGIN * there
