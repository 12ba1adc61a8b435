"""The learning rate as a pure function of the update's number."""

from __future__ import annotations

import math

from gpt2.settings.schema import Optim


def learning_rate(update: int, optim: Optim, share: float | None = None) -> float:
    """The rate of update 1, 2, ... max_iters.

    Linear from learning_rate / warmup_steps at update 1 to learning_rate at update
    warmup_steps, then to min_lr at the last update, by optim.lr_schedule:

    cosine  half a cosine (Loshchilov & Hutter, arXiv 1608.03983, without restarts)
    wsd     constant, and a decay over the last updates (warm-up, stable, decay: Hu et
            al., arXiv 2404.06395; Haegele et al., arXiv 2405.18392). Up to the decay it
            does not depend on max_iters

    share: of a time budget that is over; the schedule after the warm-up is then of
    that, times the warm-up.
    """
    peak, low = optim.learning_rate, optim.min_lr
    warmup, last = optim.warmup_steps, optim.max_iters
    assert 1 <= update <= last, (update, last)
    if share is not None:
        ramp = min(1.0, update / warmup) if warmup else 1.0
        return ramp * (low + (peak - low) * _height(min(1.0, share), optim))
    if update <= warmup:
        return peak * update / warmup
    if optim.lr_schedule == "wsd":
        start = max(warmup, stable_until(optim))
        if update <= start:
            return peak
        progress = (update - start) / (last - start)
        return low + (peak - low) * _decay(progress, optim)
    progress = (update - warmup) / (last - warmup)
    return low + (peak - low) * _cosine(progress)


def stable_until(optim: Optim) -> int:
    """The last update before the decay of wsd."""
    return optim.max_iters - optim.decay_updates


def _height(share: float, optim: Optim) -> float:
    """From 1 at the beginning to 0 at the end of a time budget."""
    if optim.lr_schedule == "cosine":
        return _cosine(share)
    start = 1.0 - optim.lr_decay_share
    return _decay(max(0.0, share - start) / optim.lr_decay_share, optim)


def _decay(progress: float, optim: Optim) -> float:
    """From 1 at progress 0 to 0 at progress 1 of the decay."""
    done = min(1.0, progress)
    return 1.0 - (math.sqrt(done) if optim.lr_decay_shape == "sqrt" else done)


def _cosine(share: float) -> float:
    """From 1 at share 0 to 0 at share 1."""
    return 0.5 * (1.0 + math.cos(math.pi * share))
