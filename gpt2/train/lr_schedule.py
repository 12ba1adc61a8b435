"""The learning rate as a pure function of the update's number."""

from __future__ import annotations

import math

from gpt2.settings.schema import Optim


def learning_rate(update: int, optim: Optim, share: float | None = None) -> float:
    """The rate of update 1, 2, ... max_iters.

    Linear from learning_rate / warmup_steps at update 1 to learning_rate at
    update warmup_steps, then a cosine (Loshchilov & Hutter, arXiv 1608.03983,
    without restarts) that arrives at min_lr at the last update. With the share of
    a time budget that is over, the cosine is of that, times the warm-up.
    """
    peak, low = optim.learning_rate, optim.min_lr
    warmup, last = optim.warmup_steps, optim.max_iters
    assert 1 <= update <= last, (update, last)
    if share is not None:
        ramp = min(1.0, update / warmup) if warmup else 1.0
        return ramp * (low + (peak - low) * _cosine(min(1.0, share)))
    if update <= warmup:
        return peak * update / warmup
    progress = (update - warmup) / (last - warmup)
    return low + (peak - low) * _cosine(progress)


def _cosine(share: float) -> float:
    """From 1 at share 0 to 0 at share 1."""
    return 0.5 * (1.0 + math.cos(math.pi * share))
