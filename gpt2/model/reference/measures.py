"""Measures by which a model is compared with its formulas."""

from __future__ import annotations

import torch
from torch import Tensor


def deviation(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference; infinite for anything not finite."""
    worst = (a - b).abs().max().item() if a.numel() else 0.0
    return worst if worst == worst else float("inf")


def generic_sum(x: Tensor) -> Tensor:
    """A linear function of x with a different coefficient for each number."""
    slopes = torch.linspace(-1.0, 1.3, x.numel(), dtype=x.dtype, device=x.device)
    return (x * slopes.view_as(x)).sum()
