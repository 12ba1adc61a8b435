"""Triton: what decoding does with one row of scores per head, each by one launch.

Decoding a token is bound by launches, even in a graph: a row of scores is small, and
torch takes a launch for each operation on it. The position of the row is read from the
GPU's memory, so that these kernels can be recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lib.kernels.rows import SMALLEST_SUM, HeadGate, warps_for

_SMALLEST_SUM = tl.constexpr(SMALLEST_SUM)
_BAND = tl.constexpr(64)  # queries of a band that are in registers at once


@triton.jit
def _band_products(
    out, key, query, ring, row, size, D, WIDTH: tl.constexpr
):  # fmt: skip
    """Write the products of the row's key and the queries of the band, by column; the
    query of column j is at j modulo ``size``, where the row's own is put."""
    at = tl.arange(0, WIDTH)
    inside = at < D
    k = tl.load(key + at, mask=inside, other=0.0).to(tl.float32)
    own = tl.load(query + at, mask=inside, other=0.0)
    tl.store(ring + (row % size) * D + at, own, mask=inside)
    tl.store(out + row, tl.sum(own.to(tl.float32) * k, 0))
    for start in range(0, size - 1, _BAND):
        column = row + 1 - size + start + tl.arange(0, _BAND)
        before = (column >= 0) & (column < row)
        places = ring + (column % size)[:, None] * D + at[None, :]
        q = tl.load(places, mask=before[:, None] & inside[None, :], other=0.0)
        tl.store(out + column, tl.sum(q.to(tl.float32) * k[None, :], 1), mask=before)
    tl.debug_barrier()  # other threads read the products


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
def _statistic(p, at, visible, STAT: tl.constexpr, K: tl.constexpr):
    """Statistic of a row of weights p, of which ``visible`` count."""
    if STAT == "topk":
        found = _largest_sum(p, at, K)
    elif STAT == "max":
        found = tl.max(p, 0)
    elif STAT == "rms":
        found = tl.sqrt(tl.sum(p * p, 0) / visible)
    else:
        terms = p * tl.log(tl.where(p > 0, p, 1.0))
        found = -tl.sum(terms, 0) / tl.log(tl.maximum(visible, 2.0))
    return found


@triton.jit
def _softmax(x, seen):
    x = tl.where(seen, x, float("-inf"))
    x = tl.exp(x - tl.max(x, 0))
    return x / tl.sum(x, 0)


@triton.jit
def _softmax_kernel(
    score_ptr, product_ptr, key_ptr, query_ptr, ring_ptr, alpha_ptr,
    scale_ptr, bias_ptr, gate_ptr, row_ptr, out_ptr, wide_ptr,
    N, H, D, scale, alpha, size, row_mix, mix, kb, kh, qb, qh, gb, gh,
    TERM: tl.constexpr, LEARNED: tl.constexpr, STAT: tl.constexpr, K: tl.constexpr,
    AT_WEIGHTS: tl.constexpr, GATED: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One head of one sequence; it sees the columns up to the row's position."""
    head = tl.program_id(0).to(tl.int64)
    b, h = head // H, head % H
    row = tl.load(row_ptr).to(tl.int32)
    at = tl.arange(0, BLOCK)
    seen = (at <= row) & (at < N)
    x = tl.load(score_ptr + head * N + at, mask=seen, other=0.0)
    if TERM != "none":
        near, products = seen, product_ptr + head * N
        if TERM == "ring":
            near = seen & (at > row - size)
            _band_products(
                products, key_ptr + b * kb + h * kh, query_ptr + b * qb + h * qh,
                ring_ptr + head * size * D, row, size, D, WIDTH,
            )  # fmt: skip
        if LEARNED:
            alpha = tl.load(alpha_ptr + h).to(tl.float32)
        x += alpha * tl.load(products + at, mask=near, other=0.0)
    x = x * scale
    p = _softmax(x, seen)
    gate = 1.0
    if STAT != "none":
        stat = _statistic(p, at, (row + 1).to(tl.float32), STAT, K)
        stat = stat * tl.load(scale_ptr + h).to(tl.float32)
        gate = tl.sigmoid(stat + tl.load(bias_ptr + h).to(tl.float32))
        gate = 1.0 - row_mix + row_mix * gate
        if AT_WEIGHTS:
            p = _softmax(x * gate, seen)
            gate = 1.0
    if WIDE:
        tl.store(wide_ptr + head * N + at, p, mask=at < N)
    if GATED:
        own = tl.load(gate_ptr + b * gb + h * gh).to(tl.float32)
        gate = gate * (1.0 - mix + mix * own)
    p = (p * gate).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + head * N + at, p, mask=at < N)


class QueryRing(NamedTuple):
    """The row's key and query [B, H, 1, D], and queries [B, H, W + 1, D] of its last
    columns, that of column j at j modulo W + 1."""

    key: Tensor
    query: Tensor
    ring: Tensor


def softmax_rows(
    scores: Tensor,
    row: Tensor,
    scale: float,
    dtype: torch.dtype,
    *,
    term: Tensor | QueryRing | None = None,
    alpha: float | Tensor = 0.0,
    gates: Sequence[HeadGate] = (),
    statistic: str = "none",
    topk: int = 1,
    wide: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """softmax of scale (scores + alpha term) over the columns up to ``row``, times a
    factor of each head.

    scores [B, H, 1, N] in fp32; row [1]; term [B, H, 1, N], or a band, into which the
    row's query is written; at most one gate by the statistic, and one of numbers.
    Returns the weights in ``dtype`` and, if ``wide``, in fp32 without the factors.
    """
    b, h, _, n = scores.shape
    out = torch.empty_like(scores, dtype=dtype)
    full = torch.empty_like(scores) if wide else None
    learned = isinstance(alpha, Tensor)
    is_ring = isinstance(term, QueryRing)
    key, query, ring, size, d = None, None, None, 1, 1
    if isinstance(term, QueryRing):
        key, query, ring = term
        size, d = ring.shape[2:]
        assert ring.is_contiguous() and key.stride(3) == query.stride(3) == 1
    none = HeadGate(0.0)
    own = next((gate for gate in gates if gate.gates is None), none)
    other = next((gate for gate in gates if gate.gates is not None), none)
    given = None if other.gates is None else other.gates[:, 0]
    assert (own is none) == (statistic == "none"), "a gate by a statistic asks for one"
    block = triton.next_power_of_2(n)
    _softmax_kernel[(b * h,)](
        scores, torch.empty_like(scores) if is_ring else term, key, query, ring,
        alpha if learned else None, own.scale, own.bias, given, row, out, full,
        n, h, d, scale, 0.0 if learned else alpha, size, own.mix, other.mix,
        *_strides(key), *_strides(query), *_strides(given),
        TERM="ring" if is_ring else "none" if term is None else "columns",
        LEARNED=learned, STAT=statistic, K=min(topk, n), AT_WEIGHTS=own.at_weights,
        GATED=given is not None, WIDE=wide,
        BLOCK=block, WIDTH=triton.next_power_of_2(d), num_warps=warps_of(block),
    )  # fmt: skip
    return out, full


def _strides(x: Tensor | None) -> tuple[int, int]:
    """Those of sequences and heads, [B, H, ...]."""
    return (0, 0) if x is None else (x.stride(0), x.stride(1))


def warps_of(block: int) -> int:
    """Warps of a program with one row: more than for many rows, which share a GPU."""
    return max(4, warps_for(block))


@triton.jit
def _kept_sum_kernel(
    weight_ptr, new_ptr, held_ptr, row_ptr, out_ptr, N, H, R, nb, lb, ln,
    K: tl.constexpr, RENORM: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One sequence."""
    b = tl.program_id(0).to(tl.int64)
    row = tl.load(row_ptr).to(tl.int32)
    at, column = tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    new = tl.load(new_ptr + b * nb + column, mask=column < R, other=0.0)
    held = held_ptr + b * lb + column
    tl.store(held + row.to(tl.int64) * ln, new, mask=column < R)
    x = tl.zeros([BLOCK], tl.float32)
    for head in range(0, H):
        x += tl.load(weight_ptr + (b * H + head) * N + at, mask=at < N, other=0.0)
    x = x / H
    total, divisor = tl.zeros([WIDTH], tl.float32), 0.0
    for _ in tl.static_range(K):
        value, place = tl.max(x, 0, return_indices=True)  # of equal ones the first
        value = tl.maximum(value, 0.0)
        # The row's own may not be in memory yet.
        end = tl.where(place == row, 0, R)
        one = tl.load(held + place.to(tl.int64) * ln, mask=column < end, other=0.0)
        one = tl.where(place == row, new, one)
        total += value * one.to(tl.float32)
        divisor += value
        x = tl.where(at == place, -1.0, x)
    if RENORM:
        total = total / tl.maximum(divisor, _SMALLEST_SUM)
    tl.store(out_ptr + b * R + column, total.to(out_ptr.dtype.element_ty), column < R)


def kept_sum(
    weights: Tensor, row: Tensor, new: Tensor, held: Tensor, topk: int, renorm: bool
) -> Tensor:
    """sum_j w_j held_j over the ``topk`` largest of the heads' mean weights, divided by
    their sum if ``renorm``; ``new`` [B, 1, R] is first written into held [B, T, R] at
    ``row`` [1]. weights [B, H, 1, N] in fp32 -> [B, 1, R] in the type of ``new``."""
    b, h, _, n = weights.shape
    r = new.shape[2]
    assert new.stride(2) == 1 and held.stride(2) == 1
    out = new.new_empty(b, 1, r)
    block = triton.next_power_of_2(n)
    _kept_sum_kernel[(b,)](
        weights, new, held, row, out, n, h, r, new.stride(0), *held.stride()[:2],
        K=min(topk, n), RENORM=renorm, BLOCK=block, WIDTH=triton.next_power_of_2(r),
        num_warps=warps_of(block),
    )  # fmt: skip
    return out
