"""One row per sequence against its cache: what decoding a token asks for.

The weights of one row are small, so that every mechanism can have them as numbers.
What takes time is to read keys and values: once, in the type in which they are cached,
and latents once for all heads.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2.model.backends.call import (
    Attended,
    AttentionCall,
    OfHeads,
    Transposed,
    platform_of_tensor,
)
from gpt2.model.backends.reference import statistic_of
from lib.kernels.rows import WIDEST_ROW, WIDEST_TOPK


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
    if has_kernel(call):
        return _by_kernel(call)
    weights, wide, statistic = _weights(call)
    if call.statistic is not None and call.statistic.head_average:
        statistic = statistic_of(wide, call.statistic, _visible(call))
    if call.v is None:
        return Attended(call.q.new_empty(0), statistic)
    return Attended(_product(weights, call.v), statistic, wide.mean(1))


def _visible(call: AttentionCall) -> Tensor:
    """Number of columns that the row sees, [1]."""
    if call.row is None:
        return torch.full((1,), call.k.shape[2], device=call.q.device)
    return call.row + 1


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
    if wide and a.is_cuda and a.element_size() == 2 and torch.version.hip is None:
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


def _scores(call: AttentionCall) -> Tensor:
    """q.k, [B, H, 1, N], in fp32 or wider."""
    return _product(call.q.to(call.k.dtype), call.k.mT, wide=True)


def _transposed_products(t: Transposed) -> Tensor:
    """Products of the row's key and the queries, [B, H, 1, number of queries]."""
    return _product(t.keys.to(t.queries.dtype), t.queries.mT, wide=True)


def has_kernel(call: AttentionCall) -> bool:
    """Whether the kernel for recorded rows serves, which applies the gates, and gives
    no statistic."""
    if call.row is None or call.v is None or call.row_scale is not None:
        return False
    s, by_row = call.statistic, [gate for gate in call.gates if gate.gates is None]
    if len(by_row) != (s is not None) or len(call.gates) - len(by_row) > 1:
        return False
    if s is not None and (s.head_average or s.kind == "topk" and s.topk > WIDEST_TOPK):
        return False
    fits = call.k.dtype != torch.float64 and call.k.shape[2] <= WIDEST_ROW
    return fits and platform_of_tensor(call.q).triton


def _by_kernel(call: AttentionCall) -> Attended:
    """Attention with one kernel between the two products, instead of torch's many."""
    from lib.kernels.decode_rows import QueryRing, softmax_rows

    t, s, row = call.transposed, call.statistic, call.row
    assert row is not None and call.v is not None
    term: Tensor | QueryRing | None = None
    if t is not None and t.ring is not None:
        term = QueryRing(t.keys, t.queries, t.ring)
    elif t is not None:
        term = _transposed_products(t)
    weights, wide = softmax_rows(
        _scores(call),
        row,
        call.scale,
        call.v.dtype,
        term=term,
        alpha=0.0 if t is None else t.alpha,
        gates=call.gates,
        statistic="none" if s is None else s.kind,
        topk=1 if s is None else s.topk,
        wide=call.mean,
    )
    mean: Tensor | OfHeads | None = wide
    if wide is not None:
        few = 0 < call.kept <= WIDEST_TOPK
        mean = OfHeads(wide, row) if few else wide.mean(1)
    return Attended(_product(weights, call.v), None, mean, gated=bool(call.gates))


def _weights(call: AttentionCall) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weights [B, H, 1, N] in the type of the values, in fp32 or wider, and the
    statistic [B, H, 1] unless it is of the heads' average."""
    scores, row = _scores(call), call.row
    columns = scores.shape[-1]
    at = None if row is None else torch.arange(columns, device=row.device)
    if call.transposed is not None:
        scores = _add_transposed(scores, call.transposed, row, at)
    scores = scores * call.scale
    if call.row_scale is not None:
        scores = scores * call.row_scale.unsqueeze(-1)
    if row is not None and at is not None:
        scores = scores.masked_fill(at > row, float("-inf"))
    weights, statistic, s = scores.softmax(-1), None, call.statistic
    if s is not None and not s.head_average:
        statistic = statistic_of(weights, s, _visible(call))
    dtype = weights.dtype if call.v is None else call.v.dtype
    return weights.to(dtype), weights, statistic


def _add_transposed(
    scores: Tensor, t: Transposed, row: Tensor | None, at: Tensor | None
) -> Tensor:
    """Scores [B, H, 1, N] with the term; ``at``: the columns, for a recording."""
    if t.ring is not None:
        assert row is not None and at is not None
        size = t.ring.shape[2]
        t.ring.index_copy_(2, row % size, t.queries)
        t = replace(t, queries=t.ring.index_select(2, at % size), ring=None)
        band = (at > row - size) & (at <= row)
        return scores + t.alpha_per_head * _transposed_products(t) * band
    products = t.alpha_per_head * _transposed_products(t)
    # Those of the last columns, all within the window.
    before = scores.shape[-1] - products.shape[-1]
    return scores + F.pad(products, (before, 0))
