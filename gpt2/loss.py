"""Cross-entropy of the tied head without all logits in memory.

Rows are taken in chunks; the gradients of a chunk are made while its logits are
there, so that neither logits nor probabilities outlive it. The vocabulary is padded
to a multiple of 128 inside, which matrix units want: parameters stay as they are,
and padding gets no probability.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 8192  # rows: 0.8 GB of bf16 logits at GPT-2's vocabulary
MULTIPLE = 128


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, chunk: int
    ) -> Tensor:
        words, wide = weight.shape[0], _padded(weight.to(x.dtype))
        high = torch.promote_types(x.dtype, torch.float32)
        total = torch.zeros((), dtype=high, device=x.device)
        slopes_x = []
        slope_w = torch.zeros(wide.shape, dtype=high, device=x.device)
        for rows, goals in zip(x.split(chunk), targets.split(chunk), strict=True):
            logits = _logits(rows, wide, words)
            lse = logits.logsumexp(-1, keepdim=True)
            total = total + (lse - logits.gather(1, goals[:, None])).sum()
            chance = (logits - lse).exp()
            at_goal = torch.arange(wide.shape[0], device=x.device) == goals[:, None]
            slope = (chance - at_goal.to(high)).to(x.dtype)
            slopes_x.append(slope @ wide)
            slope_w = slope_w + (slope.t() @ rows).to(high)
        ctx.save_for_backward(torch.cat(slopes_x), slope_w[:words])
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


def _padded(weight: Tensor) -> Tensor:
    """[V, E] with rows of zeros up to a multiple."""
    return F.pad(weight, (0, 0, 0, -weight.shape[0] % MULTIPLE))


def _logits(rows: Tensor, wide: Tensor, words: int) -> Tensor:
    """[N, padded V], at least fp32, -inf at the padding."""
    logits = rows @ wide.t()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    padding = torch.arange(wide.shape[0], device=rows.device) >= words
    return logits.masked_fill(padding, float("-inf"))


def _rows(x: Tensor) -> Tensor:
    """Rows [N, E] in the type that matrix products have here."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    return x.flatten(0, -2)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, chunk: int = CHUNK
) -> Tensor:
    """Mean cross-entropy in nats of logits x W^T, in fp32 or more.

    x [..., E], weight [V, E], targets [...]; one gradient of it can be taken.
    """
    rows, kind = _rows(x), x.device.type
    with torch.autocast(kind, enabled=False):
        return _LinearCrossEntropy.apply(rows, weight, targets.flatten(), chunk)


@torch.no_grad()
def summed_score(
    x: Tensor, weight: Tensor, targets: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy in nats and the count of right predictions."""
    rows, flat = _rows(x), targets.flatten()
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
