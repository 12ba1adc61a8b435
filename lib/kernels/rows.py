"""Sizes and memory layout that the kernels ask for, importable without Triton."""

from __future__ import annotations

from torch import Tensor

WIDEST_HEAD = 128  # of queries, keys or values, for Triton's kernels and cuDNN alike
WIDEST_TOPK = 32  # the largest weights of a row that a program keeps with its tile
WIDEST_ROW = 1 << 15  # columns of a decoded row that a program holds
SMALLEST_SUM = 1e-12  # divisor of a row of weights that are all zero


def packed(x: Tensor) -> Tensor:
    """x with its last dimension contiguous in memory, as the kernels read it."""
    return x if x.stride(-1) == 1 else x.contiguous()


def warps_for(block: int) -> int:
    """Warps of a program that holds a row of that many numbers."""
    return min(16, max(1, block // 1024))
