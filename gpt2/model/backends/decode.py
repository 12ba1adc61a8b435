"""One row per sequence against its cache: what decoding a token asks for.

The weights of one row are small, so that every mechanism can have them as numbers.
What takes time is to read keys and values: once, in the type in which they are cached,
and latents once for all heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2.model.backends.call import Attended, AttentionCall, Transposed
from gpt2.model.backends.reference import statistic_of


def serves(call: AttentionCall) -> bool:
    """Whether a call has one row, of a sequence that goes on."""
    return call.q.shape[2] == 1 < call.k.shape[2]


def run(call: AttentionCall) -> Attended:
    if torch.is_autocast_enabled(call.q.device.type):
        with torch.autocast(call.q.device.type, enabled=False):
            return run(call)
    if _is_plain(call):
        k, v = call.k, call.v
        assert v is not None
        q = call.q.to(k.dtype)
        return Attended(F.scaled_dot_product_attention(q, k, v, scale=call.scale))
    weights, statistic = _weights(call)
    if call.v is None:
        return Attended(call.q.new_empty(0), statistic)
    output = _product(weights.to(call.v.dtype), call.v)
    return Attended(output, statistic, weights.mean(1) if call.mean else None)


def _is_plain(call: AttentionCall) -> bool:
    """Whether a fused kernel can serve: all columns count, and each head has its own
    keys and values."""
    extras = (call.transposed, call.statistic, call.row_scale, call.row)
    heads = call.k.shape[1] == call.q.shape[1]
    return heads and not call.mean and all(x is None for x in extras)


def _product(a: Tensor, b: Tensor, wide: bool = False) -> Tensor:
    """a [B, H, 1, X] times b [B, H or 1, X, Y] -> [B, H, 1, Y], in fp32 if ``wide``."""
    shared = b.shape[1] == 1
    left, right = (a[:, :, 0], b[:, 0]) if shared else (a.flatten(0, 1), _pairs(b))
    if wide and a.is_cuda and a.element_size() == 2:
        out = torch.bmm(left, right, out_dtype=torch.float32)
    else:
        out = torch.bmm(left, right)
        out = out.float() if wide and a.element_size() == 2 else out
    return out.view(*a.shape[:3], -1)


def _pairs(b: Tensor) -> Tensor:
    """[B, H, X, Y] -> [B H, X, Y] without a copy, which flatten might make."""
    assert b.stride(0) == b.shape[1] * b.stride(1) or len(b) == 1
    size = (b.shape[0] * b.shape[1], *b.shape[2:])
    return b.as_strided(size, b.stride()[1:])


def _weights(call: AttentionCall) -> tuple[Tensor, Tensor | None]:
    """Weights [B, H, 1, N] in fp32 or wider, and the statistic [B, H or 1, 1]."""
    scores = _product(call.q.to(call.k.dtype), call.k.mT, wide=True)
    columns, row = scores.shape[-1], call.row
    at = None if row is None else torch.arange(columns, device=row.device)
    if call.transposed is not None:
        scores = _add_transposed(scores, call.transposed, row, at)
    scores = scores * call.scale
    if call.row_scale is not None:
        scores = scores * call.row_scale.unsqueeze(-1)
    if row is not None and at is not None:
        scores = scores.masked_fill(at > row, float("-inf"))
    weights = scores.softmax(-1)
    if call.statistic is None:
        return weights, None
    visible = weights.new_full((1,), columns) if row is None else row + 1
    return weights, statistic_of(weights, call.statistic, visible)


def _add_transposed(
    scores: Tensor, t: Transposed, row: Tensor | None, at: Tensor | None
) -> Tensor:
    """Scores [B, H, 1, N] with the term; ``at``: the columns, for a recording."""
    products = _product(t.keys.to(t.queries.dtype), t.queries.mT, wide=True)
    products = t.alpha_per_head * products
    if not t.is_ring:
        # Those of the last columns, all within the window.
        before = scores.shape[-1] - products.shape[-1]
        return scores + F.pad(products, (before, 0))
    assert row is not None and at is not None
    keep = products.shape[-1] - 1
    slots = torch.where(at < row, at % keep, keep)
    band = (at >= row - keep) & (at <= row)
    return scores + products.index_select(-1, slots) * band
