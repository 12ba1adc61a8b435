"""The hyperparameters of an optimizer; values come from the caller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Hyperparameters by name; no defaults, since those are in Kconfig, and no checks,
    which the settings have.

    Weight decay is not here: each parameter group carries its own (see
    groups.decay_groups), and so no second value can contradict it.

    momentum: of SGD and of Muon. own: settings of one optimizer alone, by name.
    """

    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    momentum: float
    own: Mapping[str, Any] = field(default_factory=dict)

    @property
    def betas(self) -> tuple[float, float]:
        return (self.beta1, self.beta2)

    @property
    def adam(self) -> dict[str, Any]:
        """The arguments of torch's Adams."""
        return {"lr": self.learning_rate, "betas": self.betas, "eps": self.eps}

    def flat(self) -> dict[str, Any]:
        """All values by name, those of `own` included."""
        values = asdict(self)
        return {**values, **values.pop("own")}
