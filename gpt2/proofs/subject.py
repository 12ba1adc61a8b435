"""What a certificate takes and what it gives: a step at certificate size, a finding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gpt2.init import generator_for, init_parameters
from gpt2.model import GPT
from gpt2.schema import Optim, Settings
from gpt2.training.optimize import make_optimizer
from lib.optim.groups import OptimizerLike

EXACT = 1e-9  # float64 against float64
ROUNDING = 1e-5  # fp32 against fp32, relative to the largest logit


@dataclass(frozen=True, slots=True)
class Finding:
    """One cell of the table."""

    passed: bool
    figure: str
    detail: str = ""

    @classmethod
    def of_crash(cls, error: Exception) -> Finding:
        """What could not be brought to its end has failed."""
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        return cls(False, "crashed", text)


@dataclass(frozen=True, slots=True)
class Subject:
    """A step at certificate size. ``full`` are its settings at real size."""

    settings: Settings
    full: Settings
    build: Callable[[Settings], GPT] = GPT
    optimizer: Callable[[nn.Module, Optim], OptimizerLike] = make_optimizer
    seed: int = 1
    batch: int = 3

    def model(self, settings: Settings | None = None, generic: bool = True) -> GPT:
        """A model in evaluation mode, at a generic point or as initialised."""
        model = self.build(settings or self.settings)
        init_parameters(model, self.seed)
        if generic:
            scramble(model, self.seed)
        return model.eval()

    def tokens(self, tag: str, batch: int | None = None) -> Tensor:
        """Random tokens [B, T] that fill the context."""
        shape = (batch or self.batch, self.settings.model.block_size)
        generator = generator_for(self.seed, f"tokens {tag}")
        return torch.randint(self.settings.vocab_size, shape, generator=generator)


@torch.no_grad()
def scramble(model: nn.Module, seed: int) -> None:
    """Move every parameter to a generic point, where no two effects cancel."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator_for(seed, f"+{name}"))
        if parameter.ndim >= 2:
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
        else:
            parameter.add_(0.3 * noise)


def deviation(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference; infinite for anything not finite."""
    worst = (a - b).abs().max().item() if a.numel() else 0.0
    return worst if worst == worst else float("inf")


def generic_sum(x: Tensor) -> Tensor:
    """A linear function of x with a different coefficient for each number."""
    slopes = torch.linspace(-1.0, 1.3, x.numel(), dtype=x.dtype, device=x.device)
    return (x * slopes.view_as(x)).sum()
