"""Training of a small model with a pruner, as the certificates of pruning need it.

Sizes, depths and schedule are written out here, independently of the pruner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.optim.certify import trial_config
from lib.optim.groups import OptimizerLike, decay_groups, set_learning_rate
from lib.optim.registry import build
from lib.pruning.pruner import Pruner
from lib.pruning.registry import METHODS
from lib.pruning.schedules import ramp
from lib.pruning.spec import MethodSpec

STEPS = 50
SCHEDULE = ramp(sparsity=0.6, warmup_steps=8, interval=4, ramp_end=0.8, steps=STEPS)
DEPTHS = {"first.weight": 0.0, "second.weight": 1.0}
SHAPES = {"first.weight": (7, 5), "second.weight": (3, 7), "bias": (7,)}
# Layers of different size, so that global and per-layer thresholds differ.
SCALES = {"first.weight": 1.0, "second.weight": 0.4, "bias": 1.0}

RATES = {"sgd": 0.3}  # else its weights hardly move, and no score ever rises
ANY_SCORE = "bitter7"  # where the score does not matter

MakePruner = Callable[..., Pruner]


@dataclass(frozen=True, slots=True)
class Case:
    """A pruning method with an optimizer; make: the pruner's class, or a faulty one."""

    optimizer: str
    method: str
    make: MakePruner = Pruner
    variant: str = ANY_SCORE

    @property
    def kind(self) -> MethodSpec:
        return METHODS[self.method]

    @property
    def is_by_depth(self) -> bool:
        return self.variant in self.kind.by_depth


class WatchedTraining:
    """A small model in training with a pruner; decay 0.1, noisy gradients."""

    def __init__(self, case: Case, scope: str = "global") -> None:
        generator = torch.Generator().manual_seed(3)
        self.weights = {
            name: nn.Parameter(scale * torch.randn(SHAPES[name], generator=generator))
            for name, scale in SCALES.items()
        }
        self.inputs = torch.randn((STEPS, 16, 5), generator=generator)
        self.targets = torch.randn((STEPS, 16, 3), generator=generator)
        self.rate = RATES.get(case.optimizer, 0.03)
        groups = decay_groups(list(self.weights.items()), 0.1)
        self.optimizer: OptimizerLike = build(
            case.optimizer, groups, trial_config(case.optimizer)
        )
        self.pruner = case.make(
            self.prunable,
            self.optimizer,
            method=case.method,
            schedule=SCHEDULE,
            scope=scope,
            variant=case.variant,
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
        self.pruner.before_update(step)
        self.step()
        self.pruner.after_update(step)

    def step(self) -> None:
        set_learning_rate(self.optimizer, self.rate)
        self.optimizer.step()

    def masks(self) -> dict[str, Tensor]:
        return {name: mask.clone() for name, mask in self.pruner.masks.items()}


def wanted_zeros(
    step: int, scope: str, is_by_depth: bool
) -> list[tuple[list[str], float, float]]:
    """(names, share, their size) of what the schedule prunes, computed naively."""
    sizes = {name: float(torch.Size(SHAPES[name]).numel()) for name in DEPTHS}
    share = SCHEDULE.sparsity(step)
    if is_by_depth:
        shares = {n: min(0.95, share * (0.7 + 0.6 * d)) for n, d in DEPTHS.items()}
        return [([name], shares[name], sizes[name]) for name in DEPTHS]
    if scope == "layer":
        return [([name], share, sizes[name]) for name in DEPTHS]
    return [(list(DEPTHS), share, sum(sizes.values()))]
