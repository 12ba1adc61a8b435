"""Cross-entropy of the tied head without all logits in memory.

Rows are taken in chunks; the gradients of a chunk are made while its logits are
there, so that neither logits nor probabilities outlive it. The vocabulary is padded
to a multiple of 128 inside, which matrix units want: parameters stay as they are,
and padding gets no probability.

One pass over the logits is enough: with o_j = exp(logit_j - the goal's logit), the
goal itself left out, and m the sum of these odds, the loss of a row is ln(1 + m).
Its gradient over the logits is o_j / (1 + m), and -m / (1 + m) at the goal; no two
large numbers cancel in either.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.gpu.device import to_autocast_type

CHUNK = 8192  # rows: 0.8 GB of bf16 logits at GPT-2's vocabulary
MULTIPLE = 128
WORST = 75.0  # nats that a goal may lie below another word: sums stay finite in fp32


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, chunk: int
    ) -> Tensor:
        """x [N, E], weight [V, E], targets [N] -> the mean loss, a scalar."""
        words, wide = weight.shape[0], _padded(weight.to(x.dtype))
        high = torch.promote_types(x.dtype, torch.float32)
        total = torch.zeros((), dtype=high, device=x.device)
        slope_w = torch.zeros(wide.shape, dtype=high, device=x.device)
        slopes_x, at_goals = [], []
        for rows, goals in zip(x.split(chunk), targets.split(chunk), strict=True):
            rows = _not_before(slope_w, rows)
            odds, missed = _odds(rows @ wide.t(), goals, words)
            total = total + missed.log1p().sum()
            chance = 1 / (1 + missed)
            if rows.dtype == torch.float16:  # whose range is too small for odds
                odds, scale = odds * chance, torch.ones_like(chance)
            else:
                scale = chance
            odds, at_goal = odds.to(rows.dtype), missed * chance
            slopes_x.append((odds @ wide) * scale - wide[goals] * at_goal)
            slope_w = slope_w + (odds.t() @ (rows * scale).to(rows.dtype)).to(high)
            at_goals.append(rows * at_goal)
        slope_w.index_add_(0, targets, torch.cat(at_goals), alpha=-1)
        ctx.save_for_backward(torch.cat(slopes_x).to(x.dtype), slope_w[:words])
        ctx.types = x.dtype, weight.dtype, targets.numel()
        return total / targets.numel()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        slope_x, slope_w = ctx.saved_tensors
        dtype_x, dtype_w, count = ctx.types
        factor = slopes[0] / count
        return (
            (slope_x * factor).to(dtype_x),
            (slope_w * factor).to(dtype_w),
            None,
            None,
        )


def _not_before(done: Tensor, x: Tensor) -> Tensor:
    """x as it is, but a compiler cannot begin with it before ``done`` is there: it
    would make the logits of all chunks first, and keep them."""
    there = done[:1, :1].isnan()
    return x.masked_fill(there & ~there, 0.0)


def _odds(logits: Tensor, goals: Tensor, words: int) -> tuple[Tensor, Tensor]:
    """Odds [N, padded V] of all words but the goal against it, and their sum
    [N, 1]; at least fp32."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    own, column = goals[:, None], torch.arange(logits.shape[1], device=logits.device)
    above = (logits - logits.gather(1, own)).clamp_max(WORST)
    odds = above.exp().masked_fill((column == own) | (column >= words), 0.0)
    return odds, odds.sum(-1, keepdim=True)


def _padded(weight: Tensor) -> Tensor:
    """[V, E] with rows of zeros up to a multiple."""
    return F.pad(weight, (0, 0, 0, -weight.shape[0] % MULTIPLE))


def _logits(rows: Tensor, wide: Tensor, words: int) -> Tensor:
    """[N, padded V], at least fp32, -inf at the padding."""
    logits = rows @ wide.t()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    padding = torch.arange(wide.shape[0], device=rows.device) >= words
    return logits.masked_fill(padding, float("-inf"))


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, chunk: int = CHUNK
) -> Tensor:
    """Mean cross-entropy in nats of logits x W^T, in fp32 or more.

    x [..., E], weight [V, E], targets [...]; one gradient of it can be taken.
    """
    rows, kind = to_autocast_type(x).flatten(0, -2), x.device.type
    with torch.autocast(kind, enabled=False):
        return _LinearCrossEntropy.apply(rows, weight, targets.flatten(), chunk)


@torch.no_grad()
def summed_score(
    x: Tensor, weight: Tensor, targets: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy in nats and the count of right predictions.

    x [..., E], weight [V, E], targets [...].
    """
    rows, flat = to_autocast_type(x).flatten(0, -2), targets.flatten()
    with torch.autocast(x.device.type, enabled=False):
        wide = _padded(weight.to(rows.dtype))
        high = torch.promote_types(rows.dtype, torch.float32)
        loss = torch.zeros((), dtype=high, device=x.device)
        right = torch.zeros((), dtype=torch.int64, device=x.device)
        for part, goals in zip(rows.split(chunk), flat.split(chunk), strict=True):
            logits = _logits(part, wide, weight.shape[0])
            loss = loss + F.cross_entropy(logits, goals, reduction="sum")
            right = right + (logits.argmax(-1) == goals).sum()
    return loss, right
