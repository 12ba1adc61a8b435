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
# Tokens x trunk weights that a run evaluates, from which on compiling the forward pass
# pays: 17 million tokens of GPT-2 124M. To compile takes some seconds in each process,
# and saves a third of an evaluation (nanoGPT's forward pass on an H100).
COMPILED_FROM = 1.4e15

Score = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # as GPT.score


def compiles_evaluation(settings: Settings) -> bool:
    """Whether a GPU evaluates with compiled code: the same for all arms of a matrix."""
    m, data = settings.model, settings.data
    evaluations = settings.optim.max_iters // data.eval_interval + 1
    tokens = evaluations * data.eval_samples * m.block_size
    trunk = 12 * m.n_layer * m.n_embd**2
    return settings.resources.compile_model and tokens * trunk >= COMPILED_FROM


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
        self, split: TokenSplit, settings: Settings, device: DeviceInfo, batch: int
    ) -> None:
        """batch: windows scored at once, which changes the result by rounding alone.

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
        self.compiles = device.is_gpu and compiles_evaluation(settings)
        self._compiled: Score | None = None

    def fingerprint(self) -> str:
        """Fingerprint of the windows that are scored."""
        parts = range(0, len(self.offsets), FINGERPRINTED)
        rows = (self.offsets[start : start + FINGERPRINTED] for start in parts)
        pairs = (gather(self.split.tokens, row, self.block_size) for row in rows)
        return fingerprint(windows_sum(torch.stack(pair)) for pair in pairs)

    def __call__(self, model: GPT) -> Evaluation:
        """Score; dropout is off meanwhile, and no random number is drawn."""
        began = time.perf_counter()
        with _evaluating(model):
            total, right = self._sums(model, self.offsets)
            attention = self._attention(model) if self.metric_rows else {}
        tokens = len(self.offsets) * self.block_size
        seconds = time.perf_counter() - began
        return Evaluation(total / tokens, right / tokens, tokens, seconds, attention)

    def warm_up(self, model: GPT) -> None:
        """Score one batch, so that kernels are loaded and compiled before the first
        evaluation."""
        with _evaluating(model):
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
        if not self.compiles or windows != self.batch:
            return model.score
        if self._compiled is None:
            self._compiled = CompiledGPT(model).score
        return self._compiled

    def _attention(self, model: GPT) -> dict[str, list[float]]:
        """Metrics of the first windows, as many as are scored at once."""
        x, _ = gather(self.split.tokens, self.offsets[: self.batch], self.block_size)
        with autocast(self.device, self.precision):
            x = x.to(self.device.torch_device)
            return attention_metrics(model, x, self.metric_rows, self.window)


@contextmanager
def _evaluating(model: GPT) -> Iterator[None]:
    """Without dropout inside the block."""
    was_training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(was_training)
