"""Cross-entropy of the tied head without the logits of all tokens in memory.

Rows are taken in chunks, and the gradients of a chunk are computed while its logits
are in memory, so that no logits or probabilities are kept for the backward pass. The
vocabulary is padded with zeros to a multiple of 128, the size that matrix units read at
full speed: parameters keep their shape, and padding gets no probability.

One pass over the logits is enough: with the odds o_j = exp(logit_j - logit_target) of
every word but the target and their sum m, the loss of a row is ln(1 + m). Its gradient
with respect to the logits is o_j / (1 + m), and -m / (1 + m) at the target. Neither
subtracts two large numbers, as softmax minus one does at a target that is almost sure.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2.plan.memory import CHUNK, MULTIPLE
from lib.gpu.device import to_autocast_type

# Nats that a target may lie below another word: exp(75) times a vocabulary of 10^5 is
# still finite in fp32. A larger difference counts as this one.
WORST = 75.0

# torch.nn.functional.linear_cross_entropy works in chunks from 2.13 on alone. It
# returns the loss in the dtype of x: in bf16 on a CPU 8.0 instead of 11.47, for 16,384
# rows and 50,257 words. And torch.compile runs it as it is, with its exponentials in
# passes of their own over the logits.


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, chunk: int
    ) -> Tensor:
        """x [N, E], weight [V, E], targets [N] -> the mean loss, a scalar."""
        words, wide = weight.shape[0], _padded(weight.to(x.dtype))
        high = torch.promote_types(x.dtype, torch.float32)
        total = torch.zeros((), dtype=high, device=x.device)
        grad_weight = torch.zeros(wide.shape, dtype=high, device=x.device)
        grads_x, at_targets = [], []
        for rows, wanted in zip(x.split(chunk), targets.split(chunk), strict=True):
            rows = _not_before(grad_weight, rows)
            odds, missed = _odds(rows @ wide.t(), wanted, words)
            total = total + missed.log1p().sum()
            probability = 1 / (1 + missed)
            if rows.dtype == torch.float16:  # its range is too small for odds
                odds, scale = odds * probability, torch.ones_like(probability)
            else:
                scale = probability
            odds, at_target = odds.to(rows.dtype), missed * probability
            grads_x.append((odds @ wide) * scale - wide[wanted] * at_target)
            scaled = (rows * scale).to(rows.dtype)
            grad_weight = grad_weight + (odds.t() @ scaled).to(high)
            at_targets.append(rows * at_target)
        grad_weight.index_add_(0, targets, torch.cat(at_targets), alpha=-1)
        ctx.save_for_backward(torch.cat(grads_x).to(x.dtype), grad_weight[:words])
        ctx.types = x.dtype, weight.dtype, targets.numel()
        return total / targets.numel()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight = ctx.saved_tensors
        dtype_x, dtype_w, count = ctx.types
        factor = grads[0] / count
        return (
            (grad_x * factor).to(dtype_x),
            (grad_weight * factor).to(dtype_w),
            None,
            None,
        )


def _not_before(done: Tensor, x: Tensor) -> Tensor:
    """x unchanged, but dependent on ``done``.

    Chunks do not depend on each other, and a compiler that may reorder them computes
    the logits of all chunks first and keeps them. The mask is false everywhere, which
    a compiler cannot know.
    """
    there = done[:1, :1].isnan()
    return x.masked_fill(there & ~there, 0.0)


def _odds(logits: Tensor, wanted: Tensor, words: int) -> tuple[Tensor, Tensor]:
    """Odds [N, padded V] of all words but the target against it, and their sum
    [N, 1]; at least fp32."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    own, column = wanted[:, None], torch.arange(logits.shape[1], device=logits.device)
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

    x [..., E], weight [V, E], targets [...]; chunk: rows with logits in memory at a
    time. Its gradients are computed with it, and have no gradients of their own.
    """
    rows, kind = to_autocast_type(x).flatten(0, -2), x.device.type
    with torch.autocast(kind, enabled=False):
        return _LinearCrossEntropy.apply(rows, weight, targets.flatten(), chunk)


@torch.no_grad()
def summed_score(
    x: Tensor, weight: Tensor, targets: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies in nats, and how many targets have the largest logit.

    x [..., E], weight [V, E], targets [...].
    """
    rows, flat = to_autocast_type(x).flatten(0, -2), targets.flatten()
    with torch.autocast(x.device.type, enabled=False):
        wide = _padded(weight.to(rows.dtype))
        high = torch.promote_types(rows.dtype, torch.float32)
        loss = torch.zeros((), dtype=high, device=x.device)
        right = torch.zeros((), dtype=torch.int64, device=x.device)
        for part, wanted in zip(rows.split(chunk), flat.split(chunk), strict=True):
            logits = _logits(part, wide, weight.shape[0])
            loss = loss + F.cross_entropy(logits, wanted, reduction="sum")
            right = right + (logits.argmax(-1) == wanted).sum()
    return loss, right
