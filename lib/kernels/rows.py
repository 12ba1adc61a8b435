"""What kernels that go by rows ask of a tensor, and how wide they are."""

from __future__ import annotations

from torch import Tensor


def packed(x: Tensor) -> Tensor:
    """With neighbouring numbers in the last dimension, as the kernels read them."""
    return x if x.stride(-1) == 1 else x.contiguous()


def warps_for(block: int) -> int:
    """Of a program that looks at a row of that many numbers."""
    return min(16, max(1, block // 1024))
