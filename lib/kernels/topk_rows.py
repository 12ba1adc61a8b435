"""Triton: the k largest weights of each row, as columns and values, and weighted sums.

[.., K] instead of [.., N]: memory is linear in the length. They are in falling order,
equal ones by column; where fewer than K weights are positive, column -1 and value 0.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lib.kernels.causal import gather
from lib.kernels.rows import packed, warps_for


@triton.jit
def _first(value, column, other, place):
    """The larger of two values with its column; of equal ones the first column."""
    mine = (value > other) | ((value == other) & (column < place))
    return tl.where(mine, value, other), tl.where(mine, column, place)


@triton.jit
def _largest_kernel(
    x_ptr, column_ptr, value_ptr, N, K, SLOTS: tl.constexpr, GROUPS: tl.constexpr,
    EACH: tl.constexpr,
):  # fmt: skip
    """One row i of a square matrix; it sees the columns up to i.

    Columns that are equal modulo GROUPS are a group. The K largest are all in the K
    groups with the largest maxima, so that the row is searched once, for the maxima,
    and the K rounds that follow look at these groups alone.
    """
    row = tl.program_id(0).to(tl.int64)
    visible = row % N + 1
    place = tl.arange(0, EACH)[:, None] * GROUPS
    at = place + tl.arange(0, GROUPS)[None, :]
    # With a mask of arbitrary length Triton would read number by number.
    end = tl.minimum(tl.cdiv(visible, 16) * 16, N)
    x = tl.load(x_ptr + row * N + at, mask=at < end, other=0.0)
    x = tl.where(at < visible, x, 0.0)
    best, column = tl.reduce((x, at), 0, _first)
    slots = tl.arange(0, SLOTS)[None, :]
    groups = tl.full([1, SLOTS], GROUPS * EACH, tl.int32)
    for n in range(K):
        _, most = tl.reduce((best, column), 0, _first)
        groups = tl.where(slots == n, most % GROUPS, groups)
        best = tl.where(column == most, -1.0, best)
    at = place + groups
    x = tl.load(x_ptr + row * N + at, mask=at < visible, other=0.0)
    x, at = tl.reshape(x, [EACH * SLOTS]), tl.reshape(at, [EACH * SLOTS])
    for n in range(K):
        value, most = tl.reduce((x, at), 0, _first)
        tl.store(column_ptr + row * K + n, tl.where(value > 0, most, -1))
        tl.store(value_ptr + row * K + n, value)
        x = tl.where(at == most, -1.0, x)


def write_largest(weights: Tensor, columns: Tensor, values: Tensor) -> None:
    """Write the largest of each row into columns [B, T, K] (int32) and values (fp32).

    weights [B, T, T] in fp32, non-negative and contiguous; row i is read up to
    column i.
    """
    b, rows, k = columns.shape
    block = triton.next_power_of_2(rows)
    groups = min(block, max(128, triton.next_power_of_2(k)))
    _largest_kernel[(b * rows,)](
        weights, columns, values, rows, k,
        SLOTS=triton.next_power_of_2(k), GROUPS=groups, EACH=block // groups,
        num_warps=warps_for(block),
    )  # fmt: skip


@triton.jit
def _spread_kernel(
    column_ptr, value_ptr, out_ptr, T, N, K, WHOLE: tl.constexpr, SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    slot, at = tl.arange(0, SLOTS), tl.arange(0, BLOCK)
    column = tl.load(column_ptr + row * K + slot, mask=slot < K, other=-1)
    value = tl.load(value_ptr + row * K + slot, mask=slot < K, other=0.0)
    end = N
    if not WHOLE:
        end = tl.minimum(N, (row % T // 128 + 1) * 128)
    out = out_ptr + row * N
    tl.store(out + at, tl.zeros([BLOCK], out_ptr.dtype.element_ty), mask=at < end)
    tl.debug_barrier()  # zeros first
    tl.store(out + column, value.to(out_ptr.dtype.element_ty), mask=column >= 0)


def spread(
    columns: Tensor, values: Tensor, n: int, dtype: torch.dtype, whole: bool = True
) -> Tensor:
    """The matrix [B, S, N] of values [B, S, K] at their columns, zeros elsewhere.

    whole=False, for a square: squares of 128 beyond the diagonal are left unwritten.
    """
    b, rows, k = columns.shape
    out = values.new_empty((b, rows, n), dtype=dtype)
    block = triton.next_power_of_2(n)
    _spread_kernel[(b * rows,)](
        columns, values, out, rows, n, k,
        WHOLE=whole, SLOTS=triton.next_power_of_2(k), BLOCK=block,
        num_warps=warps_for(block),
    )  # fmt: skip
    return out


@triton.jit
def _sum_kernel(
    column_ptr, value_ptr, low_ptr, out_ptr, lb, S, ln: tl.constexpr, R: tl.constexpr,
    K: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Sum of value low[column] for some rows; grid [row tiles, B]. The stride ln is a
    constant because Triton vectorises loads only by a factor that it can see in it:
    with 88, eight numbers at a time."""
    b = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    row = b * S + i
    total = tl.zeros([BM, BR], tl.float32)
    for n in tl.static_range(K):
        column = tl.load(column_ptr + row * K + n, mask=i < S, other=-1)
        value = tl.load(value_ptr + row * K + n, mask=i < S, other=0.0)
        total += value[:, None] * gather(low_ptr + b * lb, column, ln, R, BR)
    at = tl.arange(0, BR)[None, :]
    total = total.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row[:, None] * R + at, total, mask=(i[:, None] < S) & (at < R))


@triton.jit
def _slope_kernel(
    column_ptr, dout_ptr, low_ptr, dvalue_ptr, lb, S, ln: tl.constexpr, R: tl.constexpr,
    K: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Gradient of each value: dout_i . low[column]."""
    b = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    row = b * S + i
    at = tl.arange(0, BR)[None, :]
    there = (i[:, None] < S) & (at < R)
    dout = tl.load(dout_ptr + row[:, None] * R + at, mask=there, other=0.0)
    for n in tl.static_range(K):
        column = tl.load(column_ptr + row * K + n, mask=i < S, other=-1)
        low = gather(low_ptr + b * lb, column, ln, R, BR)
        slope = tl.sum(dout.to(tl.float32) * low, 1)
        tl.store(dvalue_ptr + row * K + n, slope, mask=i < S)


def _tiles(columns: Tensor, low: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    """Grid and constants of the kernels that go by rows."""
    b, rows, k = columns.shape
    width = triton.next_power_of_2(low.shape[2])
    height = max(1, 1024 // width)
    sizes = {"ln": low.stride(1), "R": low.shape[2], "K": k, "BM": height, "BR": width}
    return (triton.cdiv(rows, height), b), sizes


@torch.library.custom_op("kablate::sum_kept", mutates_args=())
def sum_op(values: Tensor, columns: Tensor, low: Tensor) -> Tensor:
    """See sum_kept."""
    low = packed(low)
    (b, rows, _), width = columns.shape, low.shape[2]
    out = low.new_empty(b, rows, width)
    grid, tile = _tiles(columns, low)
    values = values.contiguous()
    _sum_kernel[grid](columns, values, low, out, low.stride(0), rows, **tile)
    return out


@sum_op.register_fake
def _(values: Tensor, columns: Tensor, low: Tensor) -> Tensor:
    return low.new_empty(*columns.shape[:2], low.shape[2])


@torch.library.custom_op("kablate::sum_kept_backward", mutates_args=())
def sum_backward_op(
    dout: Tensor, values: Tensor, columns: Tensor, low: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of values and low. Low's is a product with the spread matrix: atomic
    additions row by row would depend on the order in which programs run."""
    low = packed(low)
    (_, rows, _), n = columns.shape, low.shape[1]
    dout, dvalues = dout.contiguous(), torch.empty_like(values)
    grid, tile = _tiles(columns, low)
    _slope_kernel[grid](columns, dout, low, dvalues, low.stride(0), rows, **tile)
    matrix = spread(columns, values.contiguous(), n, dout.dtype)
    return dvalues, torch.bmm(matrix.mT, dout)


@sum_backward_op.register_fake
def _(
    dout: Tensor, values: Tensor, columns: Tensor, low: Tensor
) -> tuple[Tensor, Tensor]:
    return values.new_empty(values.shape), low.new_empty(low.shape)


def _save(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None, Tensor]:
    values, columns, low = ctx.saved_tensors
    dvalues, dlow = sum_backward_op(dout.to(low.dtype), values, columns, low)
    return dvalues, None, dlow


sum_op.register_autograd(_backward, setup_context=_save)


def sum_kept(values: Tensor, columns: Tensor, low: Tensor) -> Tensor:
    """sum_k values_ik low[columns_ik]; values [B, S, K] in fp32, columns [B, S, K],
    low [B, N, R] -> [B, S, R] in low's dtype."""
    total: Tensor = sum_op(values, columns, low)
    return total
