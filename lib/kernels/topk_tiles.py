"""Triton: the largest scores of each row so far, updated by tiles of new scores.

``keep_largest`` keeps any number of them, inserting one after the other in as many
rounds as the worst row of a tile needs. ``keep_eights`` keeps eight, by a sorting
network over the scores that each thread holds: the same work for every tile.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def keep_largest(top, s, K: tl.constexpr, BN: tl.constexpr):
    """The K largest of ``top`` [BM, K] and the rows of s [BM, BN], in no order."""
    slots, columns = tl.arange(0, K)[None, :], tl.arange(0, BN)[None, :]
    least, place = tl.min(top, 1, return_indices=True)
    best, at = tl.max(s, 1, return_indices=True)
    while tl.max((best > least).to(tl.int32), 0) > 0:
        better = (best > least)[:, None] & (slots == place[:, None])
        top = tl.where(better, best[:, None], top)
        s = tl.where(columns == at[:, None], float("-inf"), s)
        least, place = tl.min(top, 1, return_indices=True)
        best, at = tl.max(s, 1, return_indices=True)
    return top


@triton.jit
def _pair(a, b):
    return tl.maximum(a, b), tl.minimum(a, b)


@triton.jit
def _eight(x, BM: tl.constexpr):
    """[BM, 4, 8] as eight tensors [BM, 4]."""
    even, odd = tl.split(tl.reshape(x, [BM, 4, 2, 2, 2]))
    x04, x26 = tl.split(even)
    x15, x37 = tl.split(odd)
    x0, x4 = tl.split(x04)
    x2, x6 = tl.split(x26)
    x1, x5 = tl.split(x15)
    x3, x7 = tl.split(x37)
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit
def _falling(x, BM: tl.constexpr):
    """[BM, 4, 8] as eight tensors in falling order; Batcher's network."""
    x0, x1, x2, x3, x4, x5, x6, x7 = _eight(x, BM)
    x0, x1 = _pair(x0, x1)
    x2, x3 = _pair(x2, x3)
    x4, x5 = _pair(x4, x5)
    x6, x7 = _pair(x6, x7)
    x0, x2 = _pair(x0, x2)
    x1, x3 = _pair(x1, x3)
    x4, x6 = _pair(x4, x6)
    x5, x7 = _pair(x5, x7)
    x1, x2 = _pair(x1, x2)
    x5, x6 = _pair(x5, x6)
    x0, x4 = _pair(x0, x4)
    x1, x5 = _pair(x1, x5)
    x2, x6 = _pair(x2, x6)
    x3, x7 = _pair(x3, x7)
    x2, x4 = _pair(x2, x4)
    x3, x5 = _pair(x3, x5)
    x1, x2 = _pair(x1, x2)
    x3, x4 = _pair(x3, x4)
    x5, x6 = _pair(x5, x6)
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit
def _merged(a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7):
    """The eight largest of two falling eights, falling; a bitonic merge."""
    x0 = tl.maximum(a0, b7)
    x1 = tl.maximum(a1, b6)
    x2 = tl.maximum(a2, b5)
    x3 = tl.maximum(a3, b4)
    x4 = tl.maximum(a4, b3)
    x5 = tl.maximum(a5, b2)
    x6 = tl.maximum(a6, b1)
    x7 = tl.maximum(a7, b0)
    x0, x4 = _pair(x0, x4)
    x1, x5 = _pair(x1, x5)
    x2, x6 = _pair(x2, x6)
    x3, x7 = _pair(x3, x7)
    x0, x2 = _pair(x0, x2)
    x1, x3 = _pair(x1, x3)
    x4, x6 = _pair(x4, x6)
    x5, x7 = _pair(x5, x7)
    x0, x1 = _pair(x0, x1)
    x2, x3 = _pair(x2, x3)
    x4, x5 = _pair(x4, x5)
    x6, x7 = _pair(x6, x7)
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit
def keep_eights(top, s, BM: tl.constexpr):
    """``top`` [BM, 4, 8], the eight largest so far of each of four lanes in falling
    order, updated by the rows of s [BM, 64].

    On NVIDIA, a matrix unit's accumulator gives a thread two neighbours of every eight
    columns of a row; four such threads are the lanes, so that nothing crosses threads.
    Elsewhere the result is the same and numbers cross threads.
    """
    even, odd = tl.split(tl.permute(tl.reshape(s, [BM, 8, 4, 2]), (0, 2, 1, 3)))
    a0, a1, a2, a3, a4, a5, a6, a7 = _falling(even, BM)
    b0, b1, b2, b3, b4, b5, b6, b7 = _falling(odd, BM)
    a0, a1, a2, a3, a4, a5, a6, a7 = _merged(
        a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7
    )  # fmt: skip
    b0, b1, b2, b3, b4, b5, b6, b7 = _eight(top, BM)
    a0, a1, a2, a3, a4, a5, a6, a7 = _merged(
        a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7
    )  # fmt: skip
    even = tl.join(tl.join(a0, a4), tl.join(a2, a6))
    odd = tl.join(tl.join(a1, a5), tl.join(a3, a7))
    return tl.reshape(tl.join(even, odd), [BM, 4, 8])
