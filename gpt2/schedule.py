"""The learning rate as a pure function of the update's number."""

from __future__ import annotations

import math

from gpt2.schema import Optim


def learning_rate(update: int, optim: Optim) -> float:
    """The rate of update 1, 2, ... max_iters.

    Linear from learning_rate / warmup_steps at update 1 to learning_rate at
    update warmup_steps, then a cosine (Loshchilov & Hutter, arXiv 1608.03983,
    without restarts) that arrives at min_lr at the last update.
    """
    peak, low = optim.learning_rate, optim.min_lr
    warmup, last = optim.warmup_steps, optim.max_iters
    assert 1 <= update <= last, (update, last)
    if update <= warmup:
        return peak * update / warmup
    progress = (update - warmup) / (last - warmup)
    return low + (peak - low) * 0.5 * (1.0 + math.cos(math.pi * progress))
