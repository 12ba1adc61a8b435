"""AUTO_BATCH: the largest micro batch that fits, at the same effective batch."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gpt2.train.batch_split import BatchSplit, split_batch
from lib.gpu.device import DeviceInfo

MARGIN = 0.92  # of the memory that is there; evaluation and fragments need some


def largest(split: BatchSplit, fits: Callable[[BatchSplit], bool]) -> BatchSplit:
    """The largest cut of the effective batch that fits, tried by doubling or halving.

    Begins with ``split`` and tries divisors only. Where even one sequence does not
    fit, the cut of one is returned: the training itself then says why.
    """
    if fits(split):
        while (bigger := larger(split)) is not None and fits(bigger):
            split = bigger
        return split
    while (smaller := split.smaller()) is not None:
        split = smaller
        if fits(split):
            break
    return split


def larger(split: BatchSplit) -> BatchSplit | None:
    """The next cut that makes fewer passes: twice the micro batch, or the smallest
    divisor above that. None if there is but one pass."""
    share = split.micro_batch * split.accumulation
    for micro in range(2 * split.micro_batch, share + 1):
        if share % micro == 0:
            return split_batch(
                split.effective_batch, micro, split.world_size, split.rank
            )
    return None


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
