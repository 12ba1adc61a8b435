"""Validation: loss, perplexity and accuracy over fixed windows.

The windows are the same for every arm, seed and micro batch; each token counts
once and alike.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gpt2.data import TokenSplit, eval_windows, gather
from gpt2.schema import Settings
from lib.device import DeviceInfo, autocast


class Scorer(Protocol):
    """What evaluation needs of a model (gpt2.model.GPT is one)."""

    training: bool

    def train(self, mode: bool = True) -> Any: ...

    def score(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the losses and number of correct tokens of int64 [B, T]."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """loss in nats per token; accuracy: share of tokens whose arg max is right."""

    loss: float
    accuracy: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700.0 else math.inf


class Evaluator:
    """Scores a model on the validation split as the settings ask."""

    def __init__(
        self, split: TokenSplit, settings: Settings, device: DeviceInfo, batch: int
    ) -> None:
        """batch: windows scored at once; it does not change the result.

        Raises DataError if the split has too few windows.
        """
        self.split, self.device, self.batch = split, device, batch
        self.block_size = settings.model.block_size
        self.precision = settings.optim.mixed_precision
        self.offsets = eval_windows(
            split.tokens.size, self.block_size, settings.data.eval_samples
        )

    def __call__(self, model: Scorer) -> Evaluation:
        """Score; dropout is off meanwhile, and no random number is drawn."""
        was_training = model.training
        model.train(False)
        try:
            total, right = self._sums(model)
        finally:
            model.train(was_training)
        tokens = len(self.offsets) * self.block_size
        return Evaluation(total / tokens, right / tokens, tokens)

    @torch.no_grad()
    def _sums(self, model: Scorer) -> tuple[float, int]:
        device = self.device.torch_device
        loss = torch.zeros((), dtype=torch.float64, device=device)
        correct = torch.zeros((), dtype=torch.int64, device=device)
        for start in range(0, len(self.offsets), self.batch):
            rows = self.offsets[start : start + self.batch]
            x, y = gather(self.split.tokens, rows, self.block_size)
            with self._autocast():
                part, right = model.score(x.to(device), y.to(device))
            loss += part
            correct += right
        return loss.item(), int(correct.item())

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.device, self.precision)
