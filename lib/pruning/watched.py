"""A small model in training with a pruner, which the certificates of pruning watch.

Its sizes, depths and schedule are written out here, apart from the pruner's own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lib.optim.certify import trial_config
from lib.optim.groups import OptimizerLike, decay_groups, set_learning_rate
from lib.optim.registry import build
from lib.pruning.pruner import Pruner
from lib.pruning.registry import METHODS
from lib.pruning.schedules import ramp

STEPS = 50
SCHEDULE = ramp(sparsity=0.6, warmup_steps=8, interval=4, ramp_end=0.8, steps=STEPS)
DEPTHS = {"first.weight": 0.0, "second.weight": 1.0}
SHAPES = {"first.weight": (7, 5), "second.weight": (3, 7), "bias": (7,)}
# Layers of different size, so that global and per-layer thresholds differ.
SCALES = {"first.weight": 1.0, "second.weight": 0.4, "bias": 1.0}

RATES = {"sgd": 0.3}  # else its weights hardly move, and no score ever rises
ANY_SCORE = "bitter7"  # where the score does not matter

MakePruner = Callable[..., Pruner]


class WatchedTraining:
    """A small model in training with a pruner; decay 0.1, SGD-like noise."""

    def __init__(
        self,
        optimizer: str,
        method: str,
        make: MakePruner = Pruner,
        scope: str = "global",
        variant: str = ANY_SCORE,
        device: str = "cpu",
    ) -> None:
        generator = torch.Generator().manual_seed(3)
        self.weights = {
            name: nn.Parameter(
                (scale * torch.randn(SHAPES[name], generator=generator)).to(device)
            )
            for name, scale in SCALES.items()
        }
        self.inputs = torch.randn((STEPS, 16, 5), generator=generator).to(device)
        self.targets = torch.randn((STEPS, 16, 3), generator=generator).to(device)
        self.rate = RATES.get(optimizer, 0.03)
        groups = decay_groups(list(self.weights.items()), 0.1)
        self.optimizer: OptimizerLike = build(
            optimizer, groups, trial_config(optimizer)
        )
        self.pruner = make(
            self.prunable,
            self.optimizer,
            method=method,
            schedule=SCHEDULE,
            scope=scope,
            variant=variant,
            depth_of=DEPTHS,
        )

    @property
    def prunable(self) -> dict[str, nn.Parameter]:
        return {name: self.weights[name] for name in DEPTHS}

    def backward(self, step: int) -> None:
        for weight in self.weights.values():
            weight.grad = None
        hidden = self.inputs[step - 1] @ self.weights["first.weight"].T
        out = (
            torch.tanh(hidden + self.weights["bias"]) @ self.weights["second.weight"].T
        )
        loss = ((out - self.targets[step - 1]) ** 2).mean()
        torch.autograd.backward(loss)

    def update(self, step: int) -> None:
        self.backward(step)
        self.pruner.before_step(step)
        self.step()
        self.pruner.after_step(step)

    def step(self) -> None:
        set_learning_rate(self.optimizer, self.rate)
        self.optimizer.step()

    def masks(self) -> dict[str, Tensor]:
        return {name: mask.clone() for name, mask in self.pruner.masks.items()}


def by_depth(method: str, variant: str) -> bool:
    return variant in METHODS[method].by_depth


def wanted_zeros(
    step: int, scope: str, is_by_depth: bool
) -> list[tuple[list[str], float, float]]:
    """(names, share, size): the schedule's own words, apart from the pruner's."""
    sizes = {name: float(torch.Size(SHAPES[name]).numel()) for name in DEPTHS}
    share = SCHEDULE.sparsity(step)
    if is_by_depth:
        shares = {n: min(0.95, share * (0.7 + 0.6 * d)) for n, d in DEPTHS.items()}
        return [([name], shares[name], sizes[name]) for name in DEPTHS]
    if scope == "layer":
        return [([name], share, sizes[name]) for name in DEPTHS]
    return [(list(DEPTHS), share, sum(sizes.values()))]
