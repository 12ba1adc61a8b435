"""Sizes and memory layout that the kernels ask for, importable without Triton."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

WIDEST_HEAD = 128  # of queries, keys or values, for Triton's kernels and cuDNN alike
WIDEST_TOPK = 32  # the largest weights of a row that a program keeps with its tile
WIDEST_ROW = 1 << 15  # columns of a decoded row that a program holds
SMALLEST_SUM = 1e-12  # divisor of a row of weights that are all zero


class HeadGate(NamedTuple):
    """Factor 1 - mix + mix g on the output of each head. g is ``gates`` [B, S, H], or
    sigmoid(scale_h s + bias_h) of a statistic s of the head's weights, with scale and
    bias [H]; ``at_weights``: on the logits."""

    mix: float
    gates: Tensor | None = None
    scale: Tensor | None = None
    bias: Tensor | None = None
    at_weights: bool = False


def packed(x: Tensor) -> Tensor:
    """x with its last dimension contiguous in memory, as the kernels read it."""
    return x if x.stride(-1) == 1 else x.contiguous()


def warps_for(block: int) -> int:
    """Warps of a program that holds a row of that many numbers."""
    return min(16, max(1, block // 1024))
