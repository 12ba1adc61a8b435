"""SGD: torch's own."""

from __future__ import annotations

from lib.optim.config import OptimConfig
from lib.optim.eager import SGD
from lib.optim.groups import Group, fused_options


def sgd(groups: list[Group], config: OptimConfig) -> SGD:
    """SGD with momentum b <- mu b + (g + decay w), w <- w - lr b.

    The decay is an L2 penalty: it passes through the momentum. At constant lr
    and mu = 0 it is the decoupled one; otherwise w shrinks by about
    lr * decay / (1 - mu) an update.
    """
    return SGD(
        groups,
        lr=config.learning_rate,
        momentum=config.momentum,
        **fused_options(groups),
    )
