"""Triton: keep the k largest weights of each row, or those above a share of its rms.

The k-th largest is found exactly by one read of the row, without sorting: non-negative
floats have the same order as their bits read as integers, and the largest pattern that
at least k weights reach is found bit by bit, from the highest. topk_rows.py serves rows
of which few weights are kept.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lib.kernels.rows import SMALLEST_SUM, warps_for

_SMALLEST_SUM = tl.constexpr(SMALLEST_SUM)


@triton.jit
def _keep_kernel(
    x_ptr, kept_ptr, total_ptr, S, N, k, tau,
    TOPK: tl.constexpr, RMS: tl.constexpr, RENORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row of S; it sees the columns up to its own position, the last S of N."""
    row = tl.program_id(0).to(tl.int64)
    visible = row % S + 1 + N - S
    at = tl.arange(0, BLOCK)
    # Whole rows are read: with a mask of arbitrary length Triton cannot combine loads
    # and reads number by number.
    x = tl.load(x_ptr + row * N + at, mask=at < N, other=0.0)
    x = tl.where(at < visible, x, 0.0)
    least = 0.0
    if TOPK:
        bits = x.to(tl.int32, bitcast=True)
        kth = tl.full([], 0, tl.int32)
        for n in tl.static_range(31):
            more = kth | (1 << (30 - n))
            reach = tl.sum((bits >= more).to(tl.int32), 0)
            kth = tl.where(reach >= k, more, kth)
        least = kth.to(tl.float32, bitcast=True)
        # Of several weights equal to the k-th largest, the first are kept.
        equal = (x == least).to(tl.int32)
        room = k - tl.sum((x > least).to(tl.int32), 0)
        x = tl.where((equal == 1) & (tl.cumsum(equal, 0) > room), 0.0, x)
    if RMS:
        least = tau * tl.sqrt(tl.sum(x * x, 0) / visible)
    x = tl.where(x >= least, x, 0.0)
    if RENORM:
        total = tl.maximum(tl.sum(x, 0), _SMALLEST_SUM)
        tl.store(total_ptr + row, total)
        x = x / total
    tl.store(kept_ptr + row * N + at, x, mask=at < N)


@torch.library.custom_op("kablate::keep", mutates_args=())
def keep_op(
    weights: Tensor, topk: int, tau: float, renorm: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Kept weights [B, S, N] and what each row was divided by (see keep)."""
    kept, total = results = _empty(weights, topk, tau, renorm, dtype)
    weights = weights.contiguous()
    rows, columns = weights.shape[-2:]
    block = triton.next_power_of_2(columns)
    _keep_kernel[(weights.numel() // columns,)](
        weights, kept, total, rows, columns, topk, tau,
        TOPK=topk > 0, RMS=tau > 0.0, RENORM=renorm, BLOCK=block,
        num_warps=warps_for(block),
    )  # fmt: skip
    return results


def _empty(
    weights: Tensor, topk: int, tau: float, renorm: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    kept = torch.empty(weights.shape, dtype=dtype, device=weights.device)
    shape = (*weights.shape[:-1], 1) if renorm else (0,)
    return kept, weights.new_empty(shape)


keep_op.register_fake(_empty)


def _save(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output)
    ctx.renorm = inputs[3]


def _backward(ctx: Any, slope: Tensor, _total: Any) -> Any:
    """Gradient in torch's own operations, which a compiler can fuse with others."""
    kept, total = ctx.saved_tensors
    slope = slope.float()
    if ctx.renorm:
        shared = (slope * kept).sum(-1, keepdim=True)
        slope = (slope - shared) / total
    return slope.masked_fill(kept == 0, 0.0), None, None, None, None


keep_op.register_autograd(_backward, setup_context=_save)


def keep(
    weights: Tensor, topk: int, tau: float, renorm: bool, dtype: torch.dtype
) -> Tensor:
    """Keep the ``topk`` largest of a row, or what reaches ``tau`` times its rms.

    weights [B, S, N] in fp32, non-negative; of row i only the first N - S + i + 1
    columns are looked at, and zeros are written behind them. Of equal weights the
    first are kept. topk 0, tau 0.0: all stay. renorm: what stays is divided by its
    sum. The result is in ``dtype``; no weight that is 0 in it has a gradient.
    """
    kept: Tensor = keep_op(weights, topk, tau, renorm, dtype)[0]
    return kept
