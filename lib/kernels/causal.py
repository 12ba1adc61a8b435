"""Triton: causal attention with a transposed band, row statistics and mean weights.

Logits in base 2, as GPUs have an instruction for 2^x and none for e^x: s_ij = c r_i
(q_i.k_j + alpha [i - j <= W] k_i.q_j), j <= i, with c = scale log2(e) and the row
factor r_i. A program takes a tile of BM rows and passes over the columns in tiles of
BN, with the softmax of FlashAttention (Dao et al., arXiv 2205.14135): a running maximum
m and sum, and an output that is rescaled whenever m grows. Columns before the band of a
row tile need neither mask nor band, so each loop is cut there: part 0 is before, part 1
has the band and the diagonal. No number is written by two programs, so results do not
depend on the order of execution.

q, k, o [B, H, T, D] come with strides of their first three dimensions; lse, stat,
threshold, row factor [B, H, T] and mean [B, T, T] are contiguous. Gradients:
causal_backward.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lib.kernels.topk_tiles import keep_eights, keep_largest

LN2 = tl.constexpr(0.6931471805599453)
NONE, TOPK, MAX, ENTROPY, RMS = (tl.constexpr(n) for n in range(5))
# The backward pass computes a score again, in tiles of another shape, and compares it
# with the k-th largest: it may differ by rounding.
SLACK = tl.constexpr(1e-5)


@triton.jit
def load(base, rows, stride, length, D: tl.constexpr, BD: tl.constexpr):
    """Rows of a [T, D] matrix, zeros outside."""
    at = rows[:, None] * stride + tl.arange(0, BD)[None, :]
    inside = rows[:, None] < length
    if BD != D:
        inside = inside & (tl.arange(0, BD)[None, :] < D)
    return tl.load(base + at, mask=inside, other=0.0)


@triton.jit
def gather(base, rows, stride, D: tl.constexpr, BD: tl.constexpr):
    """Rows of a [T, D] matrix in fp32, zeros where a row is negative."""
    columns = tl.arange(0, BD)[None, :]
    there = rows[:, None] >= 0
    if BD != D:
        there = there & (columns < D)
    x = tl.load(base + rows[:, None] * stride + columns, mask=there, other=0.0)
    return x.to(tl.float32)


@triton.jit
def store(base, x, rows, stride, length, D: tl.constexpr, BD: tl.constexpr):
    at = rows[:, None] * stride + tl.arange(0, BD)[None, :]
    inside = rows[:, None] < length
    if BD != D:
        inside = inside & (tl.arange(0, BD)[None, :] < D)
    tl.store(base + at, x.to(base.dtype.element_ty), mask=inside)


@triton.jit
def in_band(i, j, W):
    """[BM, BN] of rows i and columns j."""
    return i[:, None] - j[None, :] <= W


@triton.jit
def in_square(i, j, T):
    """[BM, BN] of a T x T matrix. It does not leave out what lies beyond the diagonal,
    where p = 0: such a mask would split a load of eight numbers into eight loads."""
    return (i[:, None] < T) & (j[None, :] < T)


@triton.jit
def logits(q, k, rk, cq, i, j, a, c, W, BAND: tl.constexpr, P: tl.constexpr):
    """c (q_i.k_j + a [in band] k_i.q_j) [BM, BN]; c a number or [BM, 1]."""
    s = tl.dot(q, tl.trans(k), input_precision=P)
    if BAND:
        t = tl.dot(rk, tl.trans(cq), input_precision=P)
        s += tl.where(in_band(i, j, W), a * t, 0.0)
    return s * c


@triton.jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, stat_ptr, threshold_ptr, factor_ptr, alpha_ptr,
    qb, qh, qt, kb, kh, kt, vb, vh, vt, ob, oh, ot,
    c, alpha, H, T, W, topk,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    BAND: tl.constexpr, STAT: tl.constexpr, K: tl.constexpr, VALUES: tl.constexpr,
    FACTOR: tl.constexpr, LEARNED: tl.constexpr, P: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """o, lse (base 2), statistic and threshold of one row tile; grid [B H, tiles]."""
    bh = tl.program_id(0)
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    # The tiles with most columns start first, so that no long one is left at the end.
    first = (tl.num_programs(1) - 1 - tl.program_id(1)) * BM
    i = first + tl.arange(0, BM)
    q_base, k_base = q_ptr + b * qb + h * qh, k_ptr + b * kb + h * kh
    v_base = v_ptr + b * vb + h * vh
    q = load(q_base, i, qt, T, D, BD)
    rk = q
    if BAND:
        rk = load(k_base, i, kt, T, D, BD)
        if LEARNED:
            alpha = tl.load(alpha_ptr + h)
    row = bh.to(tl.int64) * T + i
    scale = tl.zeros([BM, 1], tl.float32) + c
    if FACTOR:
        scale *= tl.load(factor_ptr + row, mask=i < T, other=0.0)[:, None]
    m = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    extra = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BDV], tl.float32)
    # Up to eight are kept by a sorting network, more by inserting one after the other.
    NETWORK: tl.constexpr = K <= 8 and BN == 64
    unused = tl.arange(0, K)[None, :] >= topk
    top = tl.zeros([BM, K], tl.float32) + tl.where(unused, float("inf"), float("-inf"))
    eights = tl.full([BM, 4, 8], float("-inf"), tl.float32)
    near = tl.maximum(first - W, 0) // BN * BN
    end = tl.minimum(first + BM, T)
    for part in tl.static_range(2):
        low = 0 if part == 0 else near
        high = near if part == 0 else end
        for n in range(low, high, BN):
            j = n + tl.arange(0, BN)
            k = load(k_base, j, kt, T, D, BD)
            if BAND and part == 1:
                cq = load(q_base, j, qt, T, D, BD)
                s = logits(q, k, rk, cq, i, j, alpha, scale, W, True, P)
            else:
                s = logits(q, k, q, q, i, j, 0.0, scale, W, False, P)
            if part == 1:
                s = tl.where(i[:, None] >= j[None, :], s, float("-inf"))
            m_new = tl.maximum(m, tl.max(s, 1))
            p = tl.exp2(s - m_new[:, None])
            shrink = tl.exp2(m - m_new)
            total = total * shrink + tl.sum(p, 1)
            if STAT == ENTROPY:
                weighed = p * s
                if part == 1:
                    weighed = tl.where(p > 0, weighed, 0.0)
                extra = extra * shrink + tl.sum(weighed, 1)
            if STAT == RMS:
                extra = extra * shrink * shrink + tl.sum(p * p, 1)
            if STAT == TOPK:
                if NETWORK:
                    eights = keep_eights(eights, s, BM)
                else:
                    top = keep_largest(top, s, K, BN)
            if VALUES:
                v = load(v_base, j, vt, T, DV, BDV)
                acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=P)
            m = m_new
    lse = m + tl.log2(total)
    tl.store(lse_ptr + row, lse, mask=i < T)
    if VALUES:
        o_base = o_ptr + b * ob + h * oh
        store(o_base, acc / total[:, None], i, ot, T, DV, BDV)
    visible = (i + 1).to(tl.float32)
    if STAT == TOPK:
        if NETWORK:
            top = keep_largest(top, tl.reshape(eights, [BM, 32]), K, 32)
        used = tl.arange(0, K)[None, :] < topk
        kept = tl.where(used, tl.exp2(top - lse[:, None]), 0.0)
        tl.store(stat_ptr + row, tl.sum(kept, 1), mask=i < T)
        least = tl.min(top, 1)
        tl.store(threshold_ptr + row, least - SLACK * (1 + tl.abs(least)), mask=i < T)
    if STAT == MAX:
        tl.store(stat_ptr + row, 1.0 / total, mask=i < T)
        tl.store(threshold_ptr + row, m - SLACK * (1 + tl.abs(m)), mask=i < T)
    if STAT == ENTROPY:
        bits = tl.maximum(lse - extra / total, 0.0)
        tl.store(stat_ptr + row, bits / tl.log2(tl.maximum(visible, 2.0)), mask=i < T)
    if STAT == RMS:
        stat = tl.sqrt(extra / visible) / total
        tl.store(stat_ptr + row, stat, mask=i < T)


@triton.jit
def mean_kernel(
    q_ptr, k_ptr, lse_ptr, factor_ptr, alpha_ptr, mean_ptr,
    qb, qh, qt, kb, kh, kt, c, alpha, H, T, W,
    D: tl.constexpr, BD: tl.constexpr, BAND: tl.constexpr, FACTOR: tl.constexpr,
    LEARNED: tl.constexpr, P: tl.constexpr, WHOLE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Mean over heads of p, one tile of [T, T]; grid [rows, columns, B]. Tiles beyond
    the diagonal are zeros if WHOLE, or else are left as they are."""
    b = tl.program_id(2).to(tl.int64)
    first_i, first_j = tl.program_id(0) * BM, tl.program_id(1) * BN
    i, j = first_i + tl.arange(0, BM), first_j + tl.arange(0, BN)
    acc = tl.zeros([BM, BN], tl.float32)
    # Heads of a tile off the band and of one that meets it: a branch within the loop
    # would keep its loads from running ahead.
    off = tl.where(first_j < first_i + BM, H, 0)
    on = off * 0
    if BAND:
        on = tl.where(first_i - first_j - BN < W, off, 0)
    for part in tl.static_range(1 + BAND):
        for h in range(0, off - on if part == 0 else on):
            q_base, k_base = q_ptr + b * qb + h * qh, k_ptr + b * kb + h * kh
            q = load(q_base, i, qt, T, D, BD)
            k = load(k_base, j, kt, T, D, BD)
            row = (b * H + h) * T + i
            lse = tl.load(lse_ptr + row, mask=i < T, other=float("inf"))[:, None]
            scale = tl.zeros([BM, 1], tl.float32) + c
            if FACTOR:
                scale *= tl.load(factor_ptr + row, mask=i < T, other=0.0)[:, None]
            if part == 1:
                rk = load(k_base, i, kt, T, D, BD)
                cq = load(q_base, j, qt, T, D, BD)
                weight = alpha
                if LEARNED:
                    weight = tl.load(alpha_ptr + h)
                s = logits(q, k, rk, cq, i, j, weight, scale, W, True, P)
            else:
                s = logits(q, k, q, q, i, j, 0.0, scale, W, False, P)
            acc += tl.exp2(s - lse)
    acc = tl.where(i[:, None] >= j[None, :], acc / H, 0.0)
    if WHOLE or first_j < first_i + BM:
        at = b * T * T + i[:, None].to(tl.int64) * T + j[None, :]
        tl.store(mean_ptr + at, acc, mask=in_square(i, j, T))
