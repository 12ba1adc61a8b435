"""Validation: loss, perplexity and accuracy over fixed windows.

The windows are the same for every arm, seed and micro batch; each token counts
once and alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpt2.model.by_block import CompiledGPT
from gpt2.model.gpt import GPT
from gpt2.settings.schema import Settings
from gpt2.train.attention_metrics import attention_metrics
from gpt2.train.batches import Offsets, TokenSplit, eval_windows, gather
from gpt2.train.fingerprints import fingerprint, windows_sum
from lib.gpu.device import DeviceInfo, autocast

FINGERPRINTED = 64  # windows in memory at a time

Score = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # as GPT.score


@dataclass(frozen=True, slots=True)
class Evaluation:
    """loss in nats per token; accuracy: share of tokens whose arg max is right;
    seconds: what the evaluation took, by a clock of its own."""

    loss: float
    accuracy: float
    tokens: int
    seconds: float = field(default=0.0, compare=False)
    attention: Mapping[str, list[float]] = field(default_factory=dict)

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700.0 else math.inf


class Evaluator:
    """Scores a model on the validation split as the settings ask."""

    def __init__(
        self,
        split: TokenSplit,
        settings: Settings,
        device: DeviceInfo,
        batch: int,
        compiled: CompiledGPT | None = None,
    ) -> None:
        """batch: windows scored at once, which changes the result by rounding alone.
        compiled: the model as it trains, in micro batches of as many windows.

        Raises DataError if the split has too few windows.
        """
        self.split, self.device, self.batch = split, device, batch
        self.block_size = settings.model.block_size
        self.precision = settings.optim.mixed_precision
        self.metric_rows = 0
        if settings.resources.attention_metrics:
            self.metric_rows = settings.resources.attention_metrics_rows
        self.window = settings.mechanisms.ra_window
        self.offsets = eval_windows(
            split.tokens.size, self.block_size, settings.data.eval_samples
        )
        # Without dropout the code that trains scores as well; with it, training is
        # another function. A CPU gains nothing.
        self.has_dropout = settings.model.dropout > 0.0
        scores = device.is_gpu and not self.has_dropout
        self.compiled = compiled if scores else None

    def fingerprint(self) -> str:
        """Fingerprint of the windows that are scored."""
        parts = range(0, len(self.offsets), FINGERPRINTED)
        rows = (self.offsets[start : start + FINGERPRINTED] for start in parts)
        pairs = (gather(self.split.tokens, row, self.block_size) for row in rows)
        return fingerprint(windows_sum(torch.stack(pair)) for pair in pairs)

    def __call__(self, model: GPT) -> Evaluation:
        """Score; dropout is off meanwhile, and no random number is drawn."""
        began = time.perf_counter()
        with self._evaluating(model):
            total, right = self._sums(model, self.offsets)
            attention = self._attention(model) if self.metric_rows else {}
        tokens = len(self.offsets) * self.block_size
        seconds = time.perf_counter() - began
        return Evaluation(total / tokens, right / tokens, tokens, seconds, attention)

    def warm_up(self, model: GPT) -> None:
        """Score one batch, so that kernels are loaded and compiled before the first
        evaluation."""
        with self._evaluating(model):
            self._sums(model, self.offsets[: self.batch])

    @torch.no_grad()
    def _sums(self, model: GPT, offsets: Offsets) -> tuple[float, int]:
        device = self.device.torch_device
        loss = torch.zeros((), dtype=torch.float64, device=device)
        correct = torch.zeros((), dtype=torch.int64, device=device)
        for start in range(0, len(offsets), self.batch):
            rows = offsets[start : start + self.batch]
            x, y = gather(self.split.tokens, rows, self.block_size)
            score = self._scorer(model, len(rows))
            with autocast(self.device, self.precision):
                part, right = score(x.to(device), y.to(device))
            loss += part
            correct += right
        return loss.item(), int(correct.item())

    def _scorer(self, model: GPT, windows: int) -> Score:
        """Compiled for whole batches; another shape would be compiled once more."""
        if self.compiled is None or windows != self.batch:
            return model.score
        return self.compiled.score

    def _attention(self, model: GPT) -> dict[str, list[float]]:
        """Metrics of the first windows, as many as are scored at once."""
        x, _ = gather(self.split.tokens, self.offsets[: self.batch], self.block_size)
        with autocast(self.device, self.precision):
            x = x.to(self.device.torch_device)
            return attention_metrics(model, x, self.metric_rows, self.window)

    @contextmanager
    def _evaluating(self, model: GPT) -> Iterator[None]:
        """Without dropout inside the block. A model that has none stays as it is: its
        compiled code is for the mode in which it trains."""
        was_training = model.training
        model.train(was_training and not self.has_dropout)
        try:
            yield
        finally:
            model.train(was_training)
