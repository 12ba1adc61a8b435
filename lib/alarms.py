"""Sanity alarms during training: cheap, raised once each, never fatal.

They detect what a table of final losses hides: a leak of future tokens, a model that
does not learn, divergence, a wrong initialisation, gradients that do not lower the
loss, and two experiments that are identical.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean, median_low

FIRST, LEAK, FLAT, DIVERGING = "first", "leak", "flat", "diverging"
GROWING = "growing"
SAME_POINTS = 3  # evaluations that must agree before two curves count as identical


@dataclass(frozen=True, slots=True)
class Alarm:
    """A finding, the optimizer update at which it was made, and its message."""

    kind: str
    step: int
    message: str


@dataclass(frozen=True, slots=True)
class Limits:
    """Thresholds of the alarms; losses in nats per token unless stated otherwise."""

    first_tolerance: float = 0.1  # share of ln(vocabulary)
    # No model of this size compresses text this well: byte models of GPT-2's size
    # reach about 0.9 bits per byte on prose, 0.6 on code, and less on repetitive text.
    least_bits_per_byte: float = 0.25
    drop_per_update: float = 0.5  # a loss falls no faster than this, after the first
    flat_after: int = 200  # updates
    flat_share: float = 0.02  # of the first loss: minimum decrease
    window: int = 10  # minimum updates in a running mean of the loss
    records: int = 3  # that it has at least
    rise: float = 0.5  # of a running mean over the lowest one, or over a uniform guess
    # With wrong gradients the norm grows while the loss stalls: from 1.1 to 7.5 in 110
    # updates in which the loss fell by 3%. In 16 correct trainings on a CPU it reached
    # at most 2.0 times its minimum with Adam's family and Muon, 3.0 times with SGD.
    norm_growth: float = 4.0  # largest ratio of a running norm to the lowest one
    norm_span: int = 25  # minimum updates in a running norm
    stall: float = 0.05  # share of the loss that working training gains meanwhile


@dataclass(slots=True)
class LossWatch:
    """Alarms of one run. Pass it each training record and each evaluation.

    vocab_size: number of tokens that a uniform guess chooses from.
    bytes_per_token: of the validation text; None: bits per byte are not known.
    trained: the weights at the start were trained before, so that the first loss is low
    and need not fall; it is then the loss at update 0 that bounds how fast it may fall.
    """

    vocab_size: int
    bytes_per_token: float | None = None
    trained: bool = False
    limits: Limits = field(default_factory=Limits)
    _first: float | None = None
    _at_zero: float | None = None  # validation loss before the first update
    _recent: deque[tuple[int, float]] = field(default_factory=deque)
    _lowest: float = math.inf
    _norms: deque[tuple[int, float, float]] = field(default_factory=deque)
    _calmest: float = math.inf  # lowest running norm
    _calm_loss: float = math.inf  # mean loss when the norm was last near it
    _raised: set[str] = field(default_factory=set)

    def train(
        self, step: int, loss: float, grad_norm: float | None = None
    ) -> list[Alarm]:
        """Alarms for the training loss at update ``step``, a mean since the last
        record, and for its gradient norm before clipping; usually none."""
        if not math.isfinite(loss):
            return self._once(DIVERGING, step, f"the loss is {loss}")
        alarms = self._first_loss(step, loss) if step <= 1 else []
        alarms += self._worse_than_guess(step, loss, "loss")
        if grad_norm is not None and DIVERGING not in self._raised:
            alarms += self._growing(step, loss, grad_norm)
        if self._first is None:  # a resumed run started at a uniform guess, too
            self._first = loss if step <= 1 else math.log(self.vocab_size)
        mean = self._running_mean(step, loss)
        if mean is None:
            return alarms
        self._lowest = min(self._lowest, mean)
        return alarms + self._flat(step) + self._diverging(step, mean)

    def evaluation(self, step: int, val_loss: float) -> list[Alarm]:
        """Alarms for a validation loss: is it too low to be true?"""
        if not math.isfinite(val_loss):
            return self._once(DIVERGING, step, f"the validation loss is {val_loss}")
        if step == 0:
            self._at_zero = val_loss
            return self._first_loss(step, val_loss)
        if alarms := self._worse_than_guess(step, val_loss, "validation loss"):
            return alarms
        start = self._at_zero if self.trained else math.log(self.vocab_size)
        fastest = (start or 0.0) - self.limits.drop_per_update * step
        if val_loss < fastest - self.limits.drop_per_update:
            text = f"validation loss {val_loss:.3f} after only {step} updates"
            return self._once(LEAK, step, f"{text}: does it see the future?")
        if self.bytes_per_token is None:
            return []
        bits = val_loss / math.log(2) / self.bytes_per_token
        if bits < self.limits.least_bits_per_byte:
            text = f"validation loss {val_loss:.3f} is {bits:.2f} bits per byte"
            return self._once(LEAK, step, f"{text}: does it see the future?")
        return []

    def _running_mean(self, step: int, loss: float) -> float | None:
        """Mean of the latest losses; None until there are enough."""
        limits, recent = self.limits, self._recent
        recent.append((step, loss))
        while len(recent) > limits.records and recent[0][0] <= step - limits.window:
            recent.popleft()
        if len(recent) < limits.records or recent[0][0] > step - limits.window + 1:
            return None
        return fmean(loss for _, loss in recent)

    def _first_loss(self, step: int, loss: float) -> list[Alarm]:
        uniform = math.log(self.vocab_size)
        lower = self.trained and loss < uniform
        if lower or abs(loss - uniform) <= self.limits.first_tolerance * uniform:
            return []
        text = f"the first loss is {loss:.3f}, far from ln({self.vocab_size})"
        return self._once(FIRST, step, f"{text} = {uniform:.3f} of a uniform guess")

    def _worse_than_guess(self, step: int, loss: float, what: str) -> list[Alarm]:
        """Divergence before there is a lowest loss to compare with."""
        uniform = math.log(self.vocab_size)
        if step <= 1 or loss <= max(uniform, self._first or 0.0) + self.limits.rise:
            return []
        text = f"the {what} is {loss:.3f}, above ln({self.vocab_size}) = {uniform:.3f}"
        return self._once(DIVERGING, step, f"{text} of a uniform guess")

    def _growing(self, step: int, loss: float, norm: float) -> list[Alarm]:
        """Gradients that keep growing while the loss hardly falls."""
        limits, recent = self.limits, self._norms
        recent.append((step, loss, norm))
        while len(recent) > 2 and recent[1][0] <= step - limits.norm_span:
            recent.popleft()
        if recent[0][0] > step - limits.norm_span:
            return []
        # A single spike does not count.
        running = median_low(norm for _, _, norm in recent)
        mean = fmean(loss for _, loss, _ in recent)
        self._calmest = lowest = min(self._calmest, running)
        if running <= limits.norm_growth / 2 * lowest:
            self._calm_loss = mean
        has_grown = running >= limits.norm_growth * lowest
        if not has_grown or mean <= (1 - limits.stall) * self._calm_loss:
            return []
        norms = f"the gradient norm grew from {lowest:.2f} to {running:.2f}"
        losses = f"the loss went from {self._calm_loss:.3f} to {mean:.3f}"
        text = f"{norms} while {losses}: are the gradients right?"
        return self._once(GROWING, step, text)

    def _flat(self, step: int) -> list[Alarm]:
        assert self._first is not None
        learnt = self._first - self._lowest
        if step < self.limits.flat_after or self.trained:
            return []
        if learnt >= self.limits.flat_share * self._first:
            return []
        text = f"the loss came down by only {learnt:.3f} in {step} updates"
        return self._once(FLAT, step, f"{text}: it does not learn")

    def _diverging(self, step: int, mean: float) -> list[Alarm]:
        if mean <= self._lowest + self.limits.rise:
            return []
        text = f"the mean loss is {mean:.3f}, after it had been {self._lowest:.3f}"
        return self._once(DIVERGING, step, text)

    def _once(self, kind: str, step: int, message: str) -> list[Alarm]:
        if kind in self._raised:
            return []
        self._raised.add(kind)
        return [Alarm(kind, step, message)]


Curve = Sequence[tuple[int, float]]


def are_identical(a: Curve, b: Curve, points: int = SAME_POINTS) -> bool:
    """Whether two curves of (step, loss) are equal wherever both have values.

    Values before the first update do not count; at least ``points`` others must be
    shared.
    """
    mine, theirs = dict(a), dict(b)
    shared = [step for step in mine.keys() & theirs.keys() if step > 0]
    return len(shared) >= points and all(mine[s] == theirs[s] for s in shared)


def identical_curves(curves: Mapping[str, Curve]) -> list[tuple[str, str]]:
    """Each pair of names with the same curve, for runs that should differ."""
    return [
        (one, two)
        for one, two in combinations(curves, 2)
        if are_identical(curves[one], curves[two])
    ]
