"""Triton: what decoding does with one row of scores per head, each by one launch.

Decoding a token is bound by launches, even in a graph: a row of scores is small, and
torch takes a launch for each operation on it. The position of the row is read from the
GPU's memory, so that these kernels can be recorded.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lib.kernels.rows import SMALLEST_SUM, warps_for

_SMALLEST_SUM = tl.constexpr(SMALLEST_SUM)
NO_TERM, RING, COLUMNS = 0, 1, 2  # whose products a transposed term gives
_RING, _COLUMNS = tl.constexpr(RING), tl.constexpr(COLUMNS)


@triton.jit
def _largest_sum(x, at, K: tl.constexpr):
    """Sum of the K largest of x, of which none is negative."""
    total = 0.0
    for _ in tl.static_range(K):
        value, place = tl.max(x, 0, return_indices=True)
        total += tl.maximum(value, 0.0)
        x = tl.where(at == place, -1.0, x)
    return total


@triton.jit
def _softmax_kernel(
    score_ptr, term_ptr, alpha_ptr, factor_ptr, row_ptr, out_ptr, wide_ptr, stat_ptr,
    N, H, scale, alpha, keep,
    TERM: tl.constexpr, LEARNED: tl.constexpr, FACTOR: tl.constexpr,
    WIDE: tl.constexpr, STAT: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One head of one sequence; it sees the columns up to the row's position."""
    head = tl.program_id(0).to(tl.int64)
    row = tl.load(row_ptr)
    at = tl.arange(0, BLOCK)
    seen = (at <= row) & (at < N)
    x = tl.load(score_ptr + head * N + at, mask=seen, other=0.0)
    if LEARNED:
        alpha = tl.load(alpha_ptr + head % H).to(tl.float32)
    if TERM == _RING:
        slot = tl.where(at < row, at % keep, keep)
        near = seen & (at >= row - keep)
        x += alpha * tl.load(term_ptr + head * (keep + 1) + slot, mask=near, other=0.0)
    if TERM == _COLUMNS:
        x += alpha * tl.load(term_ptr + head * N + at, mask=seen, other=0.0)
    x = x * scale
    if FACTOR:
        x = x * tl.load(factor_ptr + head)
    x = tl.where(seen, x, float("-inf"))
    x = tl.exp(x - tl.max(x, 0))
    p = x / tl.sum(x, 0)
    tl.store(out_ptr + head * N + at, p.to(out_ptr.dtype.element_ty), mask=at < N)
    if WIDE:
        tl.store(wide_ptr + head * N + at, p, mask=at < N)
    visible = (row + 1).to(tl.float32)
    if STAT == "topk":
        tl.store(stat_ptr + head, _largest_sum(p, at, K))
    if STAT == "max":
        tl.store(stat_ptr + head, tl.max(p, 0))
    if STAT == "rms":
        tl.store(stat_ptr + head, tl.sqrt(tl.sum(p * p, 0) / visible))
    if STAT == "entropy":
        terms = p * tl.log(tl.where(p > 0, p, 1.0))
        tl.store(stat_ptr + head, -tl.sum(terms, 0) / tl.log(tl.maximum(visible, 2.0)))


def softmax_rows(
    scores: Tensor,
    row: Tensor,
    scale: float,
    dtype: torch.dtype,
    *,
    products: Tensor | None = None,
    is_ring: bool = False,
    alpha: float | Tensor = 0.0,
    factor: Tensor | None = None,
    statistic: str = "none",
    topk: int = 1,
    wide: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """softmax of factor scale (scores + alpha products) over the columns up to ``row``.

    scores [B, H, 1, N] in fp32, row [1], factor [B, H, 1]. products [B, H, 1, N] of
    all columns, or [B, H, 1, W + 1] of a ring (see Transposed in
    gpt2/model/backends/call.py). Returns the weights in ``dtype``, if ``wide`` also in
    fp32, and the statistic [B, H, 1] of that name.
    """
    b, h, _, n = scores.shape
    out = torch.empty_like(scores, dtype=dtype)
    full = torch.empty_like(scores) if wide else None
    stat = None if statistic == "none" else scores.new_empty(b, h, 1)
    learned = isinstance(alpha, Tensor)
    term = NO_TERM if products is None else RING if is_ring else COLUMNS
    block = triton.next_power_of_2(n)
    _softmax_kernel[(b * h,)](
        scores, products, alpha if learned else None,
        None if factor is None else factor.contiguous(), row, out, full, stat,
        n, h, scale, 0.0 if learned else alpha,
        1 if products is None else products.shape[-1] - 1,
        TERM=term, LEARNED=learned, FACTOR=factor is not None, WIDE=wide,
        STAT=statistic, K=topk, BLOCK=block, num_warps=warps_of(block),
    )  # fmt: skip
    return out, full, stat


def warps_of(block: int) -> int:
    """Warps of a program with one row: more than for many rows, which share a GPU."""
    return max(4, warps_for(block))


@triton.jit
def _kept_sum_kernel(
    weight_ptr, low_ptr, out_ptr, N, R, lb, ln,
    K: tl.constexpr, RENORM: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One sequence."""
    b = tl.program_id(0).to(tl.int64)
    at, column = tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    x = tl.load(weight_ptr + b * N + at, mask=at < N, other=0.0)
    total, divisor = tl.zeros([WIDTH], tl.float32), 0.0
    for _ in tl.static_range(K):
        value, place = tl.max(x, 0, return_indices=True)  # of equal ones the first
        value = tl.maximum(value, 0.0)
        low = low_ptr + b * lb + place.to(tl.int64) * ln
        one = tl.load(low + column, mask=column < R, other=0.0)
        total += value * one.to(tl.float32)
        divisor += value
        x = tl.where(at == place, -1.0, x)
    if RENORM:
        total = total / tl.maximum(divisor, _SMALLEST_SUM)
    tl.store(out_ptr + b * R + column, total.to(out_ptr.dtype.element_ty), column < R)


def kept_sum(weights: Tensor, low: Tensor, topk: int, renorm: bool) -> Tensor:
    """sum_j w_j low_j over the ``topk`` largest weights, divided by their sum if
    ``renorm``; weights [B, 1, N] in fp32, low [B, N, R] -> [B, 1, R] in low's type."""
    b, _, n = weights.shape
    r = low.shape[2]
    assert low.stride(2) == 1
    out = low.new_empty(b, 1, r)
    block = triton.next_power_of_2(n)
    _kept_sum_kernel[(b,)](
        weights.contiguous(), low, out, n, r, low.stride(0), low.stride(1),
        K=min(topk, n), RENORM=renorm, BLOCK=block, WIDTH=triton.next_power_of_2(r),
        num_warps=warps_of(block),
    )  # fmt: skip
    return out


@triton.jit
def _gate_kernel(
    x_ptr, gate_ptr, scale_ptr, bias_ptr, out_ptr, H, D, mix, xb, xh, gb, gh,
    RAW: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One head of one sequence."""
    program = tl.program_id(0).to(tl.int64)
    b, h = program // H, program % H
    gate = tl.load(gate_ptr + b * gb + h * gh).to(tl.float32)
    if RAW:
        scale = tl.load(scale_ptr + h).to(tl.float32)
        gate = tl.sigmoid(scale * gate + tl.load(bias_ptr + h).to(tl.float32))
    at = tl.arange(0, WIDTH)
    x = tl.load(x_ptr + b * xb + h * xh + at, mask=at < D, other=0.0).to(tl.float32)
    x = x * (1.0 - mix + mix * gate)
    tl.store(out_ptr + program * D + at, x.to(out_ptr.dtype.element_ty), mask=at < D)


def gate_rows(
    x: Tensor,
    gate: Tensor,
    mix: float,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """x [B, H, 1, D] times 1 - a + a g of the gates [B, H or 1], which with scale and
    bias [H] are the sigmoid of scale times gate plus bias."""
    b, h, _, d = x.shape
    assert x.stride(3) == 1
    gate = gate.expand(b, h)
    out = x.new_empty(x.shape)
    _gate_kernel[(b * h,)](
        x, gate, scale, bias, out, h, d, mix,
        x.stride(0), x.stride(1), gate.stride(0), gate.stride(1),
        RAW=scale is not None, WIDTH=triton.next_power_of_2(d), num_warps=1,
    )  # fmt: skip
    return out
