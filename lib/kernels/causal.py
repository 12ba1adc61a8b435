"""Triton: causal attention with a transposed band, row statistics and mean weights.

Logits in base 2: s_ij = c r_i (q_i.k_j + alpha [i - j <= W] k_i.q_j), j <= i, with
c = scale log2(e). Tiles of BM rows and BN columns. Columns before the band of a
row tile need neither mask nor band: loops are cut there. Nothing is written by
two programs, so results do not depend on the order of execution.

Backward: ds_ij = p_ij (dp_ij + a_i f_ij + dM_ij / H - D_i). f is the slope of the
row's statistic (top-k: p_ij among the k largest; entropy: -ln p_ij; rms: p_ij),
D_i = o_i.do_i + g_i stat_i + sum_j p_ij dM_ij / H.

q, k, o, do [B, H, T, D] come with strides of their first three dimensions; lse,
stat, threshold, row factor [B, H, T] and dM, mean [B, T, T] are contiguous.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lib.kernels.largest import keep_eights, keep_largest

LN2 = tl.constexpr(0.6931471805599453)
NONE, TOPK, MAX, ENTROPY, RMS = (tl.constexpr(n) for n in range(5))
# A score computed twice, in tiles of another shape, differs by rounding.
SLACK = tl.constexpr(1e-5)


@triton.jit
def _load(base, rows, stride, length, D: tl.constexpr, BD: tl.constexpr):
    """Rows of a [T, D] matrix, zeros outside."""
    at = rows[:, None] * stride + tl.arange(0, BD)[None, :]
    inside = rows[:, None] < length
    if BD != D:
        inside = inside & (tl.arange(0, BD)[None, :] < D)
    return tl.load(base + at, mask=inside, other=0.0)


@triton.jit
def _store(base, x, rows, stride, length, D: tl.constexpr, BD: tl.constexpr):
    at = rows[:, None] * stride + tl.arange(0, BD)[None, :]
    inside = rows[:, None] < length
    if BD != D:
        inside = inside & (tl.arange(0, BD)[None, :] < D)
    tl.store(base + at, x.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _in_band(i, j, W):
    """[BM, BN] of rows i and columns j."""
    return i[:, None] - j[None, :] <= W


@triton.jit
def _inside(i, j, T):
    """[BM, BN] of a T x T matrix. What is not causal has p = 0, and a mask that
    knows it would split a load of eight numbers into eight loads."""
    return (i[:, None] < T) & (j[None, :] < T)


@triton.jit
def _logits(q, k, rk, cq, i, j, a, c, W, BAND: tl.constexpr, P: tl.constexpr):
    """c (q_i.k_j + a [in band] k_i.q_j) [BM, BN]; c a number or [BM, 1]."""
    s = tl.dot(q, tl.trans(k), input_precision=P)
    if BAND:
        t = tl.dot(rk, tl.trans(cq), input_precision=P)
        s += tl.where(_in_band(i, j, W), a * t, 0.0)
    return s * c


@triton.jit
def _slope(s, p, lse, threshold, STAT: tl.constexpr):
    """f: d stat / d s_ij = a_i p_ij (f_ij - its mean); all in natural units."""
    if STAT == TOPK or STAT == MAX:
        return tl.where(s >= threshold, 1.0, 0.0)
    if STAT == ENTROPY:
        return (lse - s) * LN2
    return p


@triton.jit
def _slope_factor(g, stat, visible, STAT: tl.constexpr):
    """a_i from the gradient g of the statistic."""
    if STAT == ENTROPY:
        return g / (tl.log2(tl.maximum(visible, 2.0)) * LN2)
    if STAT == RMS:
        return g / (stat * visible)
    return g


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
    first = (tl.num_programs(1) - 1 - tl.program_id(1)) * BM  # the longest first
    i = first + tl.arange(0, BM)
    q_base, k_base = q_ptr + b * qb + h * qh, k_ptr + b * kb + h * kh
    v_base = v_ptr + b * vb + h * vh
    q = _load(q_base, i, qt, T, D, BD)
    rk = q
    if BAND:
        rk = _load(k_base, i, kt, T, D, BD)
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
    # Up to eight are kept by a network, more by putting one after the other in place.
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
            k = _load(k_base, j, kt, T, D, BD)
            if BAND and part == 1:
                cq = _load(q_base, j, qt, T, D, BD)
                s = _logits(q, k, rk, cq, i, j, alpha, scale, W, True, P)
            else:
                s = _logits(q, k, q, q, i, j, 0.0, scale, W, False, P)
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
                v = _load(v_base, j, vt, T, DV, BDV)
                acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=P)
            m = m_new
    lse = m + tl.log2(total)
    tl.store(lse_ptr + row, lse, mask=i < T)
    if VALUES:
        o_base = o_ptr + b * ob + h * oh
        _store(o_base, acc / total[:, None], i, ot, T, DV, BDV)
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
def rows_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, do_ptr, dq_ptr, dk_ptr,
    lse_ptr, stat_ptr, threshold_ptr, g_ptr, dm_ptr, factor_ptr, alpha_ptr,
    delta_ptr, dfactor_ptr, dalpha_ptr,
    qb, qh, qt, kb, kh, kt, vb, vh, vt, ob, oh, ot, gb, gh, gt, xb, xh, xt, yb, yh, yt,
    c, scale, alpha, H, T, W,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    BAND: tl.constexpr, STAT: tl.constexpr, VALUES: tl.constexpr, MEAN: tl.constexpr,
    FACTOR: tl.constexpr, LEARNED: tl.constexpr, P: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """D_i, dq_i as a row, the band's dk_i, and what alpha and row factor get."""
    bh = tl.program_id(0)
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    first = tile * BM
    i = first + tl.arange(0, BM)
    q_base, k_base = q_ptr + b * qb + h * qh, k_ptr + b * kb + h * kh
    v_base = v_ptr + b * vb + h * vh
    q = _load(q_base, i, qt, T, D, BD)
    rk = q
    if BAND:
        rk = _load(k_base, i, kt, T, D, BD)
        if LEARNED:
            alpha = tl.load(alpha_ptr + h)
    row = bh.to(tl.int64) * T + i
    lse = tl.load(lse_ptr + row, mask=i < T, other=float("inf"))[:, None]
    delta = tl.zeros([BM], tl.float32)
    do = tl.zeros([BM, BDV], v_ptr.dtype.element_ty)
    if VALUES:
        do = _load(do_ptr + b * gb + h * gh, i, gt, T, DV, BDV)
        o = _load(o_ptr + b * ob + h * oh, i, ot, T, DV, BDV)
        delta += tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    a = tl.zeros([BM], tl.float32)
    threshold = tl.zeros([BM], tl.float32)
    if STAT != NONE:
        g = tl.load(g_ptr + row, mask=i < T, other=0.0)
        stat = tl.load(stat_ptr + row, mask=i < T, other=1.0)
        a = _slope_factor(g, stat, (i + 1).to(tl.float32), STAT)
        delta += g * stat
        if STAT == TOPK or STAT == MAX:
            threshold = tl.load(threshold_ptr + row, mask=i < T, other=0.0)
    factor = tl.full([BM, 1], 1.0, tl.float32)
    if FACTOR:
        factor = tl.load(factor_ptr + row, mask=i < T, other=0.0)[:, None]
    near = tl.maximum(first - W, 0) // BN * BN
    end = tl.minimum(first + BM, T)
    mean_rows = b * T * T + i[:, None].to(tl.int64) * T
    dq = tl.zeros([BM, BD], tl.float32)
    drk = tl.zeros([BM, BD], tl.float32)
    dfactor = tl.zeros([BM], tl.float32)
    # What dM adds to D_i is known at the end of the row alone: sums of p_ij k_j and
    # of what else ds_ij is multiplied by take it off then, without a second pass.
    shared = tl.zeros([BM], tl.float32)
    k_mean = tl.zeros([BM, BD], tl.float32)
    cq_mean = tl.zeros([BM, BD], tl.float32)
    raw_mean = tl.zeros([BM], tl.float32)
    for part in tl.static_range(2):
        low = 0 if part == 0 else near
        high = near if part == 0 else end
        for n in range(low, high, BN):
            j = n + tl.arange(0, BN)
            k = _load(k_base, j, kt, T, D, BD)
            cq = k
            if BAND and part == 1:
                cq = _load(q_base, j, qt, T, D, BD)
                s = _logits(q, k, rk, cq, i, j, alpha, c, W, True, P)
            else:
                s = _logits(q, k, q, q, i, j, 0.0, c, W, False, P)
            raw = s
            if FACTOR:
                s = s * factor
            p = tl.exp2(s - lse)
            if part == 1:
                p = tl.where(i[:, None] >= j[None, :], p, 0.0)
            ds = tl.zeros([BM, BN], tl.float32) - delta[:, None]
            if VALUES:
                v = _load(v_base, j, vt, T, DV, BDV)
                ds += tl.dot(do, tl.trans(v), input_precision=P)
            if STAT != NONE:
                ds += a[:, None] * _slope(s, p, lse, threshold[:, None], STAT)
            if MEAN:
                inside = _inside(i, j, T)
                dm = tl.load(dm_ptr + mean_rows + j[None, :], mask=inside, other=0.0)
                dm = dm.to(tl.float32) / H
                ds += dm
                shared += tl.sum(p * dm, 1)
                weights = p.to(k.dtype)
                k_mean = tl.dot(weights, k, k_mean, input_precision=P)
                if BAND and part == 1:
                    weights = tl.where(_in_band(i, j, W), weights, 0.0)
                    cq_mean = tl.dot(weights, cq, cq_mean, input_precision=P)
                if FACTOR:
                    raw_mean += tl.sum(tl.where(p > 0, p * raw, 0.0), 1)
            ds = p * ds
            if STAT == ENTROPY and part == 1:  # 0 times an infinite slope
                ds = tl.where(p > 0, ds, 0.0)
            if FACTOR:
                dfactor += tl.sum(ds * raw, 1)
            ds = (ds * factor).to(k.dtype)
            dq = tl.dot(ds, k, dq, input_precision=P)
            if BAND and part == 1:
                ds = tl.where(_in_band(i, j, W), ds, 0.0)
                drk = tl.dot(ds, cq, drk, input_precision=P)
    if MEAN:
        taken = shared[:, None] * factor
        dq -= taken * k_mean
        drk -= taken * cq_mean
        dfactor -= shared * raw_mean
    tl.store(delta_ptr + row, delta + shared, mask=i < T)
    _store(dq_ptr + b * xb + h * xh, dq * scale, i, xt, T, D, BD)
    if BAND:
        drk *= scale
        _store(dk_ptr + b * yb + h * yh, drk * alpha, i, yt, T, D, BD)
        if LEARNED:
            share = tl.sum(tl.sum(drk * rk.to(tl.float32), 1), 0)
            tl.store(dalpha_ptr + bh * tl.num_programs(1) + tile, share)
    if FACTOR:
        tl.store(dfactor_ptr + row, dfactor * LN2, mask=i < T)  # raw is in base 2


@triton.jit
def columns_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, dq_ptr, dk_ptr, dv_ptr,
    lse_ptr, stat_ptr, threshold_ptr, g_ptr, dm_ptr, factor_ptr, alpha_ptr, delta_ptr,
    qb, qh, qt, kb, kh, kt, vb, vh, vt, gb, gh, gt, xb, xh, xt, yb, yh, yt, zb, zh, zt,
    c, scale, alpha, H, T, W,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    BAND: tl.constexpr, STAT: tl.constexpr, VALUES: tl.constexpr, MEAN: tl.constexpr,
    FACTOR: tl.constexpr, LEARNED: tl.constexpr, P: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dk_j, dv_j, and the band's dq_j added to what rows_kernel left there."""
    bh = tl.program_id(0)
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    first = tl.program_id(1) * BN
    j = first + tl.arange(0, BN)
    q_base, k_base = q_ptr + b * qb + h * qh, k_ptr + b * kb + h * kh
    k = _load(k_base, j, kt, T, D, BD)
    cq, v = k, k
    if VALUES:
        v = _load(v_ptr + b * vb + h * vh, j, vt, T, DV, BDV)
    if BAND:
        cq = _load(q_base, j, qt, T, D, BD)
        if LEARNED:
            alpha = tl.load(alpha_ptr + h)
    dk = tl.zeros([BN, BD], tl.float32)
    dv = tl.zeros([BN, BDV], tl.float32)
    dcq = tl.zeros([BN, BD], tl.float32)
    begin = first // BM * BM
    far = tl.minimum((first + BN + W + BM - 1) // BM * BM, (T + BM - 1) // BM * BM)
    for part in tl.static_range(2):
        low = begin if part == 0 else far
        high = far if part == 0 else T
        for m in range(low, high, BM):
            i = m + tl.arange(0, BM)
            row = bh.to(tl.int64) * T + i
            q = _load(q_base, i, qt, T, D, BD)
            lse = tl.load(lse_ptr + row, mask=i < T, other=float("inf"))[:, None]
            delta = tl.load(delta_ptr + row, mask=i < T, other=0.0)[:, None]
            factor = tl.full([BM, 1], 1.0, tl.float32)
            if FACTOR:
                factor = tl.load(factor_ptr + row, mask=i < T, other=0.0)[:, None]
            rk = q
            if BAND and part == 0:
                rk = _load(k_base, i, kt, T, D, BD)
                s = _logits(q, k, rk, cq, i, j, alpha, c * factor, W, True, P)
            else:
                s = _logits(q, k, q, q, i, j, 0.0, c * factor, W, False, P)
            p = tl.exp2(s - lse)
            if part == 0:
                p = tl.where(i[:, None] >= j[None, :], p, 0.0)
            ds = tl.zeros([BM, BN], tl.float32) - delta
            if VALUES:
                do = _load(do_ptr + b * gb + h * gh, i, gt, T, DV, BDV)
                dv = tl.dot(tl.trans(p.to(do.dtype)), do, dv, input_precision=P)
                ds += tl.dot(do, tl.trans(v), input_precision=P)
            if STAT != NONE:
                g = tl.load(g_ptr + row, mask=i < T, other=0.0)[:, None]
                stat = tl.load(stat_ptr + row, mask=i < T, other=1.0)[:, None]
                a = _slope_factor(g, stat, (i + 1).to(tl.float32)[:, None], STAT)
                threshold = stat
                if STAT == TOPK or STAT == MAX:
                    threshold = tl.load(threshold_ptr + row, mask=i < T, other=0.0)
                    threshold = threshold[:, None]
                ds += a * _slope(s, p, lse, threshold, STAT)
            if MEAN:
                at = b * T * T + i[:, None].to(tl.int64) * T + j[None, :]
                dm = tl.load(dm_ptr + at, mask=_inside(i, j, T), other=0.0)
                ds += dm.to(tl.float32) / H
            ds = p * ds
            if STAT == ENTROPY:  # 0 times an infinite slope
                ds = tl.where(p > 0, ds, 0.0)
            ds = tl.trans((ds * factor).to(q.dtype))
            dk = tl.dot(ds, q, dk, input_precision=P)
            if BAND and part == 0:
                inside = i[None, :] - j[:, None] <= W
                ds = tl.where(inside, ds, 0.0)
                dcq = tl.dot(ds, rk, dcq, input_precision=P)
    dk *= scale
    if BAND:
        dq_base, dk_base = dq_ptr + b * xb + h * xh, dk_ptr + b * yb + h * yh
        dk += _load(dk_base, j, yt, T, D, BD).to(tl.float32)
        before = _load(dq_base, j, xt, T, D, BD).to(tl.float32)
        _store(dq_base, before + dcq * (alpha * scale), j, xt, T, D, BD)
    _store(dk_ptr + b * yb + h * yh, dk, j, yt, T, D, BD)
    if VALUES:
        _store(dv_ptr + b * zb + h * zh, dv, j, zt, T, DV, BDV)


@triton.jit
def mean_kernel(
    q_ptr, k_ptr, lse_ptr, factor_ptr, alpha_ptr, mean_ptr,
    qb, qh, qt, kb, kh, kt, c, alpha, H, T, W,
    D: tl.constexpr, BD: tl.constexpr, BAND: tl.constexpr, FACTOR: tl.constexpr,
    LEARNED: tl.constexpr, P: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Mean over heads of p, one tile of [T, T]; grid [rows, columns, B]."""
    b = tl.program_id(2).to(tl.int64)
    first_i, first_j = tl.program_id(0) * BM, tl.program_id(1) * BN
    i, j = first_i + tl.arange(0, BM), first_j + tl.arange(0, BN)
    acc = tl.zeros([BM, BN], tl.float32)
    if first_j < first_i + BM:
        for h in range(0, H):
            q_base, k_base = q_ptr + b * qb + h * qh, k_ptr + b * kb + h * kh
            q = _load(q_base, i, qt, T, D, BD)
            k = _load(k_base, j, kt, T, D, BD)
            row = (b * H + h) * T + i
            lse = tl.load(lse_ptr + row, mask=i < T, other=float("inf"))[:, None]
            scale = tl.zeros([BM, 1], tl.float32) + c
            if FACTOR:
                scale *= tl.load(factor_ptr + row, mask=i < T, other=0.0)[:, None]
            s = tl.dot(q, tl.trans(k), input_precision=P)
            if BAND:
                weight = alpha
                if LEARNED:
                    weight = tl.load(alpha_ptr + h)
                if first_i - first_j - BN < W:
                    rk = _load(k_base, i, kt, T, D, BD)
                    cq = _load(q_base, j, qt, T, D, BD)
                    t = tl.dot(rk, tl.trans(cq), input_precision=P)
                    s += tl.where(_in_band(i, j, W), weight * t, 0.0)
            acc += tl.exp2(s * scale - lse)
        acc = tl.where(i[:, None] >= j[None, :], acc / H, 0.0)
    at = b * T * T + i[:, None].to(tl.int64) * T + j[None, :]
    tl.store(mean_ptr + at, acc, mask=(i[:, None] < T) & (j[None, :] < T))
