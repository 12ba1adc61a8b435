"""Sparsity over the updates of a run: one schedule for every method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class CubicSchedule:
    """Zhu & Gupta's cubic ramp (arXiv 1710.01878, eq. 1).

    s_t = final - final (1 - (t - start) / (n interval))^3, which is theirs from an
    initial sparsity of 0, at the steps t = start, start + interval, ...,
    start + n interval, where n = `updates`. Steps are optimizer updates done. Between
    those steps and after the last one the sparsity holds.
    """

    final: float
    start: int
    interval: int
    updates: int

    @property
    def end(self) -> int:
        """The step of the last mask update."""
        return self.start + self.updates * self.interval

    def is_update(self, step: int) -> bool:
        """Whether the masks change after update `step`."""
        inside = self.start <= step <= self.end
        return inside and (step - self.start) % self.interval == 0

    def sparsity(self, step: int) -> float:
        """The share of weights that are pruned after `step` updates."""
        if step < self.start:
            return 0.0
        done = min((step - self.start) // self.interval, self.updates)
        left = 1.0 - done / self.updates
        return self.final - self.final * left**3


def ramp(
    *, sparsity: float, warmup_steps: int, interval: int, ramp_end: float, steps: int
) -> CubicSchedule:
    """The schedule from `warmup_steps` to at most ramp_end * steps, from 0.

    The last mask update falls on the cadence, so it may come up to interval - 1
    steps before the end asked for. ValueError: a value out of range, or a ramp
    too short for one update (nothing would ever be pruned).
    """
    if not 0.0 < sparsity < 1.0:
        raise ValueError(
            f"pruning sparsity: {sparsity!r} is out of range; allowed: 0 < s < 1 "
            "(for none, choose the method none)"
        )
    if interval < 1 or warmup_steps < 0 or not 0.0 < ramp_end <= 1.0:
        raise ValueError(
            f"pruning schedule: interval {interval!r}, warm-up {warmup_steps!r}, ramp "
            f"end {ramp_end!r}; allowed: >= 1, >= 0, 0 < end <= 1"
        )
    # In binary 0.57 * 5000 is 2849.9999999999995, and its last mask update was missing.
    end = int(round(ramp_end * steps, 6))
    updates = (end - warmup_steps) // interval
    if updates < 1:
        raise ValueError(
            f"pruning schedule: no mask update fits between step {warmup_steps} and "
            f"step {end} (ramp end {ramp_end:g} of {steps}) every {interval} steps; "
            "lower the warm-up or the interval, or train longer"
        )
    return CubicSchedule(
        final=sparsity, start=warmup_steps, interval=interval, updates=updates
    )


def head_target(sparsity: float, heads: Sequence[int]) -> tuple[int, int]:
    """(whole heads nearest to a share of all, those of them that can go).

    heads: how many each layer has. One per layer is never pruned, so at high
    sparsity fewer can go than were requested.
    """
    wanted = round(sparsity * sum(heads))
    return wanted, min(wanted, sum(heads) - len(heads))
