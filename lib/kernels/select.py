"""The k-th largest number of each row, exact, by one read of the row.

torch.topk sorts what it returns; here only a threshold is wanted. Bits of
non-negative floats are ordered as the floats are: the largest bit pattern that k
of the row reach is found bit by bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _kth_kernel(x_ptr, kth_ptr, N, k, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * N + at, mask=at < N, other=0.0)
    bits = x.to(tl.int32, bitcast=True)
    kth = 0
    for n in tl.static_range(31):
        more = kth | (1 << (30 - n))
        reach = tl.sum((bits >= more).to(tl.int32), 0)
        kth = tl.where(reach >= k, more, kth)
    tl.store(kth_ptr + row, kth)


@torch.library.custom_op("kablate::kth_largest", mutates_args=())
def kth_largest(x: Tensor, k: int) -> Tensor:
    """[..., N] of non-negative fp32 -> [..., 1], without a gradient; 1 <= k <= N."""
    x = x.contiguous()
    kth = torch.empty((*x.shape[:-1], 1), dtype=torch.int32, device=x.device)
    block = triton.next_power_of_2(x.shape[-1])
    warps = min(16, max(1, block // 512))
    _kth_kernel[(kth.numel(),)](x, kth, x.shape[-1], k, BLOCK=block, num_warps=warps)
    return kth.view(torch.float32)


@kth_largest.register_fake
def _(x, k):
    return x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
