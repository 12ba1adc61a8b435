"""Faults between ranks, to be planted in each of them before it trains."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from gpt2.train.distributed import Ranks
from gpt2.train.update import Updater


def plant(fault: str) -> None:
    """``missing``: gradients stay on their ranks. ``early``: they are added up after
    the first micro step instead of the last. ``seed``: rank 1 starts elsewhere."""
    {"missing": _missing, "early": _early, "seed": _seed}[fault]()


def _missing() -> None:
    setattr(Ranks, "sum_gradients", lambda self, parameters: None)  # noqa: B010


def _early() -> None:
    def accumulate(self: Updater, data: Iterator[Any]) -> Tensor:
        total = self.micro_step(*next(data)).clone()
        self.ranks.sum_gradients(self.parameters)
        for _ in range(self.accumulation - 1):
            total += self.micro_step(*next(data))
        return self.ranks.sum(total)

    setattr(Updater, "accumulate", accumulate)  # noqa: B010


def _seed() -> None:
    build = Updater.__init__

    def moved(self: Updater, model: nn.Module, *rest: Any) -> None:
        if os.environ["RANK"] == "1":
            next(model.parameters()).data.add_(1e-3)
        build(self, model, *rest)

    setattr(Updater, "__init__", moved)  # noqa: B010
