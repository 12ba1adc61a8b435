"""An optimizer made from a function that updates one weight.

It handles one parameter at a time, as a formula is written, and so launches more
kernels per update on a GPU than torch's fused optimizers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lib.optim.eager import Eager
from lib.optim.groups import Group

if TYPE_CHECKING:
    from lib.optim.spec import Update


class PlainOptimizer(Eager):
    """Calls `update` for each parameter that has a gradient."""

    def __init__(self, groups: list[Group], *, lr: float, update: Update) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})
        self.update = update

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    state = self.state[weight]
                    rate, decay = group["lr"], group["weight_decay"]
                    self.update(weight, weight.grad, state, rate, decay)
