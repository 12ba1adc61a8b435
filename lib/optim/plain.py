"""An optimizer whose update is a function of one weight, for those torch lacks.

One parameter after the other, as the formula reads: some launches more per update on a
GPU than torch's fused optimizers need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lib.optim.eager import Eager
from lib.optim.groups import Group

# (weight, gradient, state, lr, decay) changes the weight in place. The state is a dict
# of the weight's own, empty before the first update; its tensors are saved.
Update = Callable[[Tensor, Tensor, dict[str, Any], float, float], object]


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
