"""Input and output of a certificate: a step at certificate size, and a finding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gpt2.mechanisms import mechanisms
from gpt2.model.gpt import GPT
from gpt2.model.init import generator_for, init_parameters
from gpt2.settings.schema import Optim, Settings
from gpt2.train.build_optimizer import make_optimizer
from lib.optim.groups import OptimizerLike

EXACT = 1e-9  # float64 against float64
# Settings that count tokens. Tiny sizes cut them down; 0, the whole context, stays.
LENGTHS = tuple(name for m in mechanisms() for name in m.lengths)
ROUNDING = 1e-5  # fp32 against fp32, relative to the largest logit


@dataclass(frozen=True, slots=True)
class Finding:
    """Outcome of one certificate: its figure, and the reason if it failed."""

    passed: bool
    figure: str
    detail: str = ""

    @classmethod
    def of_crash(cls, error: Exception) -> Finding:
        """Finding for a certificate that crashed: it failed."""
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        return cls(False, "crashed", text)


class _NothingDrawn(TorchFunctionMode):
    """Leave weights undrawn and make tables in memory. To draw or count on the meta
    device torch imports its compiler, which takes longer than all other certificates
    of a step."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        if func in (torch.arange, torch.eye):
            kwargs = {"device": "cpu", **kwargs}
        return func(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class Subject:
    """A step at certificate size.

    full: its settings at real size.
    larger: at a size between the two, where what tiny sizes hide can be seen.
    """

    settings: Settings
    full: Settings
    larger: Settings | None = None
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

    def shapes(self, settings: Settings) -> dict[str, torch.Size]:
        """Shape of each parameter of a model of these settings, by name."""
        with torch.device("meta"), _NothingDrawn():
            model = self.build(settings)
        return {name: p.shape for name, p in model.named_parameters()}

    def tokens(self, tag: str, batch: int | None = None) -> Tensor:
        """Random tokens [B, T] that fill the context."""
        shape = (batch or self.batch, self.settings.model.block_size)
        generator = generator_for(self.seed, f"tokens {tag}")
        return torch.randint(self.settings.vocab_size, shape, generator=generator)


@torch.no_grad()
def scramble(model: nn.Module, seed: int, centre: float | None = None) -> None:
    """Move every parameter to a generic point, where no two effects cancel.

    centre: of parameters that are not matrices; None: their initial value.
    """
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator_for(seed, f"+{name}"))
        if parameter.ndim >= 2:
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
        else:
            start = parameter if centre is None else centre
            parameter.copy_(start + 0.3 * noise)
