"""The hyperparameters of an optimizer; values come from the caller."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Hyperparameters by name; no defaults, since those live in Kconfig.

    Weight decay is not here: each parameter group carries its own (see
    groups.decay_groups), and so no second value can contradict it.

    momentum: of SGD and of Muon. spam_threshold: theta, the ratio g^2 / v
    beyond which an entry is a spike. spam_interval, spam_warmup: updates
    between momentum resets, and of warm-up after each. spam_reset_counter:
    restart the bias correction at a reset too.
    """

    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    momentum: float
    spam_threshold: float
    spam_interval: int
    spam_warmup: int
    spam_reset_counter: bool

    def __post_init__(self) -> None:
        _check("learning_rate", self.learning_rate, self.learning_rate > 0, "> 0")
        _check("beta1", self.beta1, 0 <= self.beta1 < 1, "0 <= beta1 < 1")
        _check("beta2", self.beta2, 0 <= self.beta2 < 1, "0 <= beta2 < 1")
        _check("eps", self.eps, self.eps > 0, "> 0")
        _check("momentum", self.momentum, 0 <= self.momentum < 1, "0 <= momentum < 1")

    @property
    def betas(self) -> tuple[float, float]:
        return (self.beta1, self.beta2)


def _check(field: str, value: float, holds: bool, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{field}: {value!r} is out of range; allowed: {allowed}")
