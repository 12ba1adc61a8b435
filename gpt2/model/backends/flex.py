"""Attention composed of torch's FlexAttention, for GPUs under torch.compile.

A band takes two calls, merged by their log-sum-exps: near keys, where the transposed
score counts, with doubled head width ([q, alpha k].[k, q]), and far keys without it.
FlexAttention gives no weights, but the entropy needs only their mean score, ln Z -
sum_j p_ij s_ij, and sum_j p_ij s_ij = q_i.(sum_j p_ij k_j): the keys are appended to
the values, and the second half of the output is that sum.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import (
    AuxRequest,
    create_block_mask,
    flex_attention,
)

from gpt2.model.backends.call import (
    Attended,
    AttentionCall,
    CallShape,
    Platform,
    first_reason,
)

Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def unsupported(shape: CallShape, platform: Platform) -> str:
    """Why this backend cannot serve such a call; empty if it can."""
    statistic = shape.statistic
    return first_reason(
        (platform.device != "cuda", "needs a GPU"),
        (not platform.compiled, "needs torch.compile (COMPILE_MODEL=y)"),
        (shape.mean, "no weights to average"),
        (
            statistic is not None and statistic.kind != "entropy",
            "no statistic but the entropy",
        ),
        (statistic is not None and statistic.head_average, "heads stay apart"),
        (statistic is not None and shape.banded, "no entropy within a band"),
        (shape.dropout > 0, "no dropout"),
        (shape.rows != shape.columns, "no decoding"),
        (shape.dtype == torch.float64, "no float64"),
    )


def run(call: AttentionCall) -> Attended:
    q, k, v = call.expanded()
    scale, term = call.scale, call.transposed
    factor: Tensor | float = 1.0
    if call.row_scale is not None:
        factor = call.row_scale.unsqueeze(-1).to(q.dtype)
    rows, columns = q * factor, k
    if term is not None:
        weighted = (term.alpha_per_head * k * factor).to(q.dtype)
        columns = torch.cat([k, q], -1)
        if not term.is_whole(k.shape[2]):
            return Attended(
                banded(rows, columns, v, weighted, scale=scale, window=term.window)
            )
        rows = torch.cat([rows, weighted], -1)
    if call.statistic is None:
        return Attended(causal(rows, columns, v, scale=scale))
    return Attended(*with_entropy(rows, columns, v, scale=scale))


def banded(
    q: Tensor, k: Tensor, v: Tensor, weighted: Tensor, *, scale: float, window: int
) -> Tensor:
    """Output [B, H, T, Dv] with the transposed score within the window.

    ``weighted`` [B, H, T, D] are the rows' keys times alpha, and times the row's factor
    where q has it too; ``k`` [B, H, T, 2 D] are keys and queries of the columns.
    """
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
    """Output [B, H, T, Dv] and log-sum-exp [B, H, T] over the keys that mask shows."""
    blocks = create_block_mask(mask, None, None, length, length, device=q.device)
    wanted = AuxRequest(lse=True)
    out, found = flex_attention(
        q, k, v, block_mask=blocks, scale=scale, return_aux=wanted
    )
    assert found.lse is not None, "the log-sum-exp was asked for"
    return out, found.lse


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
