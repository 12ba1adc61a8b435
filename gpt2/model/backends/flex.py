"""Attention composed of torch's FlexAttention, for GPUs under torch.compile.

A band is two calls merged by log-sum-exp: near keys, where the transposed score
counts, with doubled head width ([q, alpha k].[k, q]), and far keys without it.
The entropy comes from values widened by the keys: sum_j p_ij s_ij is the row's
query times sum_j p_ij k_j.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import (
    BlockMask,
    create_block_mask,
    flex_attention,
)

Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def banded(
    q: Tensor, k: Tensor, v: Tensor, weighted: Tensor, *, scale: float, window: int
) -> Tensor:
    """Output [B, H, T, Dv]; ``weighted`` [B, H, T, D] are the rows' keys times
    alpha (and the row's factor, which q then carries too); k and the queries of
    the columns come in ``k`` as [k, q]."""
    width = q.shape[-1]
    near, near_lse = _flex(
        torch.cat([q, weighted], -1), k, v, scale, _near(window), q.shape[2]
    )
    far, far_lse = _flex(q, k[..., :width], v, scale, _far(window), q.shape[2])
    return merge(near, near_lse, far, far_lse)


def merge(one: Tensor, one_lse: Tensor, two: Tensor, two_lse: Tensor) -> Tensor:
    """Attention over both sets of keys, from outputs [B, H, T, D] and log-sum-exps
    [B, H, T] over each. A row may have no keys in one of them: lse -inf."""
    lse = torch.logaddexp(one_lse, two_lse)
    parts = ((one, one_lse), (two, two_lse))
    first, second = (x * (own - lse).exp().unsqueeze(-1) for x, own in parts)
    return (first + second).to(one.dtype)


def causal(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Output [B, H, T, Dv]."""
    return _flex(q, k, v, scale, _causal, q.shape[2])[0]


def with_entropy(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float
) -> tuple[Tensor, Tensor]:
    """Output [B, H, T, Dv] and entropy over ln(visible keys) [B, H, T]."""
    width = v.shape[-1]
    both, lse = _flex(q, k, torch.cat([v, k], -1), scale, _causal, q.shape[2])
    mean_score = (q.float() * both[..., width:].float()).sum(-1) * scale
    visible = torch.arange(1, q.shape[2] + 1, device=q.device).clamp_min(2)
    return both[..., :width], (lse - mean_score) / visible.log()


def _flex(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Mask, length: int
) -> tuple[Tensor, Tensor]:
    blocks: BlockMask = create_block_mask(
        mask, None, None, length, length, device=q.device
    )
    return flex_attention(q, k, v, block_mask=blocks, scale=scale, return_lse=True)


def _causal(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return i >= j


def _near(window: int) -> Mask:
    def mask(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i >= j) & (i - j <= window)

    return mask


def _far(window: int) -> Mask:
    def mask(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return i - j > window

    return mask
