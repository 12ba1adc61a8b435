"""Triton: gradients of causal.py, by rows and then by columns.

With dp_ij = do_i.v_j, the gradient g_i of the row's statistic and that of the mean
weights dM, the gradient of a logit is

    ds_ij = p_ij (dp_ij + a_i f_ij + dM_ij / H - D_i),
    D_i = o_i.do_i + g_i stat_i + sum_j p_ij dM_ij / H,

which is softmax's: p_ij times what p_ij would get alone, less the row's mean of that.
f is the derivative of the statistic by p_ij up to a constant of the row and the factor
a_i (top-k and max: 1 among the k largest, else 0; entropy: -ln p_ij; rms: p_ij).

A logit in the band depends on q_i, k_j, k_i and q_j. rows_kernel gives dq_i and the
band's share of dk_i, columns_kernel dk_j, dv_j and the band's share of dq_j, which it
adds to what rows_kernel wrote: two kernels one after the other instead of atomics,
whose order would show in the results.

dM is a matrix [B, T, T] or, for rows of which few weights are read, KEPT numbers per
row with their columns (-1: none): their share of dq_i and D_i is summed first, number
by number, and the loops over tiles leave them out.

Tensors as in causal.py; do [B, H, T, Dv] comes with strides, D_i [B, H, T] without.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lib.kernels.causal import (
    ENTROPY,
    LN2,
    MAX,
    NONE,
    RMS,
    TOPK,
    gather,
    in_band,
    in_square,
    load,
    logits,
    store,
)


@triton.jit
def _slope(s, p, lse, threshold, STAT: tl.constexpr):
    """f of the statistic: d stat / d s_ij = a_i p_ij (f_ij - the row's mean of f), for
    logits in base e."""
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
def rows_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, do_ptr, dq_ptr, dk_ptr,
    lse_ptr, stat_ptr, threshold_ptr, g_ptr, dm_ptr, column_ptr, factor_ptr, alpha_ptr,
    delta_ptr, dfactor_ptr, dalpha_ptr,
    qb, qh, qt, kb, kh, kt, vb, vh, vt, ob, oh, ot, gb, gh, gt, xb, xh, xt, yb, yh, yt,
    dalpha_tiles, c, scale, alpha, H, T, W,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    BAND: tl.constexpr, STAT: tl.constexpr, VALUES: tl.constexpr, MEAN: tl.constexpr,
    KEPT: tl.constexpr, FACTOR: tl.constexpr, LEARNED: tl.constexpr, P: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """D_i, dq_i, the band's share of dk_i, and the gradients of alpha and row factor of
    one row tile; grid [B H, tiles]."""
    bh = tl.program_id(0)
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    first = tile * BM
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
    lse = tl.load(lse_ptr + row, mask=i < T, other=float("inf"))[:, None]
    delta = tl.zeros([BM], tl.float32)
    do = tl.zeros([BM, BDV], v_ptr.dtype.element_ty)
    if VALUES:
        do = load(do_ptr + b * gb + h * gh, i, gt, T, DV, BDV)
        o = load(o_ptr + b * ob + h * oh, i, ot, T, DV, BDV)
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
    if KEPT > 0:
        factor_i, lse_i = tl.sum(factor, 1), tl.sum(lse, 1)
        wide_q, wide_rk = q.to(tl.float32), rk.to(tl.float32)
        for n in tl.range(0, KEPT, num_stages=4):
            at = (b * T + i) * KEPT + n
            column = tl.load(column_ptr + at, mask=i < T, other=-1)
            slope = tl.load(dm_ptr + at, mask=i < T, other=0.0) / H
            key = gather(k_base, column, kt, D, BD)
            score = tl.sum(wide_q * key, 1)
            if BAND:
                within = tl.where(i - column <= W, column, -1)
                query = gather(q_base, within, qt, D, BD)
                score += alpha * tl.sum(wide_rk * query, 1)
            score *= c
            weight = tl.exp2(score * factor_i - lse_i)
            slope = tl.where(column >= 0, weight * slope, 0.0)
            delta += slope
            if FACTOR:
                dfactor += slope * score
            dq += (slope * factor_i)[:, None] * key
            if BAND:
                drk += (slope * factor_i)[:, None] * query
    # What a whole dM adds to D_i is known only at the end of the row. Sums of p_ij k_j
    # (and of p_ij times whatever else ds_ij is multiplied by) are kept until then, so
    # that it can be subtracted without a second pass.
    shared = tl.zeros([BM], tl.float32)
    k_mean = tl.zeros([BM, BD], tl.float32)
    cq_mean = tl.zeros([BM, BD], tl.float32)
    raw_mean = tl.zeros([BM], tl.float32)
    for part in tl.static_range(2):
        low = 0 if part == 0 else near
        high = near if part == 0 else end
        for n in range(low, high, BN):
            j = n + tl.arange(0, BN)
            k = load(k_base, j, kt, T, D, BD)
            cq = k
            if BAND and part == 1:
                cq = load(q_base, j, qt, T, D, BD)
                s = logits(q, k, rk, cq, i, j, alpha, c, W, True, P)
            else:
                s = logits(q, k, q, q, i, j, 0.0, c, W, False, P)
            raw = s
            if FACTOR:
                s = s * factor
            p = tl.exp2(s - lse)
            if part == 1:
                p = tl.where(i[:, None] >= j[None, :], p, 0.0)
            ds = tl.zeros([BM, BN], tl.float32) - delta[:, None]
            if VALUES:
                v = load(v_base, j, vt, T, DV, BDV)
                ds += tl.dot(do, tl.trans(v), input_precision=P)
            if STAT != NONE:
                ds += a[:, None] * _slope(s, p, lse, threshold[:, None], STAT)
            if MEAN:
                inside = in_square(i, j, T)
                dm = tl.load(dm_ptr + mean_rows + j[None, :], mask=inside, other=0.0)
                dm = dm.to(tl.float32) / H
                ds += dm
                shared += tl.sum(p * dm, 1)
                weights = p.to(k.dtype)
                k_mean = tl.dot(weights, k, k_mean, input_precision=P)
                if BAND and part == 1:
                    weights = tl.where(in_band(i, j, W), weights, 0.0)
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
                ds = tl.where(in_band(i, j, W), ds, 0.0)
                drk = tl.dot(ds, cq, drk, input_precision=P)
    if MEAN:
        taken = shared[:, None] * factor
        dq -= taken * k_mean
        drk -= taken * cq_mean
        dfactor -= shared * raw_mean
    tl.store(delta_ptr + row, delta + shared, mask=i < T)
    store(dq_ptr + b * xb + h * xh, dq * scale, i, xt, T, D, BD)
    if BAND:
        drk *= scale
        store(dk_ptr + b * yb + h * yh, drk * alpha, i, yt, T, D, BD)
        if LEARNED:
            share = tl.sum(tl.sum(drk * rk.to(tl.float32), 1), 0)
            tl.store(dalpha_ptr + bh * dalpha_tiles + tile, share)
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
    """dk_j and dv_j of one tile of columns, and the band's share of dq_j, added to what
    rows_kernel wrote; grid [B H, tiles]."""
    bh = tl.program_id(0)
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    first = tl.program_id(1) * BN
    j = first + tl.arange(0, BN)
    q_base, k_base = q_ptr + b * qb + h * qh, k_ptr + b * kb + h * kh
    k = load(k_base, j, kt, T, D, BD)
    cq, v = k, k
    if VALUES:
        v = load(v_ptr + b * vb + h * vh, j, vt, T, DV, BDV)
    if BAND:
        cq = load(q_base, j, qt, T, D, BD)
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
            q = load(q_base, i, qt, T, D, BD)
            lse = tl.load(lse_ptr + row, mask=i < T, other=float("inf"))[:, None]
            delta = tl.load(delta_ptr + row, mask=i < T, other=0.0)[:, None]
            factor = tl.full([BM, 1], 1.0, tl.float32)
            if FACTOR:
                factor = tl.load(factor_ptr + row, mask=i < T, other=0.0)[:, None]
            rk = q
            if BAND and part == 0:
                rk = load(k_base, i, kt, T, D, BD)
                s = logits(q, k, rk, cq, i, j, alpha, c * factor, W, True, P)
            else:
                s = logits(q, k, q, q, i, j, 0.0, c * factor, W, False, P)
            p = tl.exp2(s - lse)
            if part == 0:
                p = tl.where(i[:, None] >= j[None, :], p, 0.0)
            ds = tl.zeros([BM, BN], tl.float32) - delta
            if VALUES:
                do = load(do_ptr + b * gb + h * gh, i, gt, T, DV, BDV)
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
                dm = tl.load(dm_ptr + at, mask=in_square(i, j, T), other=0.0)
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
        dk += load(dk_base, j, yt, T, D, BD).to(tl.float32)
        before = load(dq_base, j, xt, T, D, BD).to(tl.float32)
        store(dq_base, before + dcq * (alpha * scale), j, xt, T, D, BD)
    store(dk_ptr + b * yb + h * yh, dk, j, yt, T, D, BD)
    if VALUES:
        store(dv_ptr + b * zb + h * zh, dv, j, zt, T, DV, BDV)
