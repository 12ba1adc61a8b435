"""Overfit one batch of real text, which every step must be able to do.

A model that cannot bring the loss of a single batch near zero has a fault that more
data would not reveal, such as a mask that hides the answer or a blocked gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gpt2.model.gpt import GPT
from gpt2.train.build_optimizer import make_optimizer
from gpt2.verify.subject import Subject

TEXT = Path(__file__).resolve()
BATCH = 4
ENOUGH = 0.05  # nats per token
UPDATES = 400
LEARNING_RATE = 3e-3


@dataclass(frozen=True, slots=True)
class Learned:
    """Loss in nats per token, and the number of updates."""

    first: float
    last: float
    updates: int

    @property
    def ok(self) -> bool:
        return self.last < ENOUGH


def one_batch(block_size: int) -> tuple[Tensor, Tensor]:
    """x, y [BATCH, T]: bytes of this file in windows that begin with different bytes,
    since two texts cannot both be learned from the same beginning."""
    text = TEXT.read_bytes()
    rows: dict[int, Tensor] = {}
    for start in range(0, len(text) - block_size, block_size + 1):
        window = torch.tensor(list(text[start : start + block_size + 1]))
        rows.setdefault(int(window[0]), window)
    pair = torch.stack(list(rows.values())[:BATCH])
    assert len(pair) == BATCH, "the text is too short"
    return pair[:, :-1], pair[:, 1:]


def overfit_batch(subject: Subject, updates: int = UPDATES) -> Learned:
    """Train on the one batch until the loss is low enough or the updates are up."""
    torch.manual_seed(subject.seed)
    model: GPT = subject.model(generic=False).train()
    optim = subject.settings.replace(
        optimizer="adamw", learning_rate=LEARNING_RATE, weight_decay=0.0
    ).optim
    optimizer = make_optimizer(model, optim)
    x, y = one_batch(subject.settings.model.block_size)
    first = last = model(x, y).item()
    for update in range(1, updates + 1):
        loss = model(x, y)
        last = loss.item()
        if last < ENOUGH:
            return Learned(first, last, update - 1)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return Learned(first, last, updates)
