"""The Triton kernels of lib/kernels/causal.py."""

from __future__ import annotations

import torch

from gpt2.mechanisms.needs import few_kept
from gpt2.model.backends.call import (
    Attended,
    AttentionCall,
    CallShape,
    Largest,
    Platform,
    first_reason,
)
from gpt2.model.backends.reference import row_statistic
from lib.kernels.rows import WIDEST_HEAD, WIDEST_TOPK


def unsupported(shape: CallShape, platform: Platform) -> str:
    """Why this backend cannot serve such a call; empty if it can."""
    s = shape.statistic
    topk = s.topk if s is not None and s.kind == "topk" and not s.head_average else 0
    return first_reason(
        (not platform.triton, "Triton is not installed, or there is no GPU"),
        (shape.dropout > 0, "no dropout"),
        (shape.rows != shape.columns, "no decoding"),
        (max(shape.widths) > WIDEST_HEAD, f"head width above {WIDEST_HEAD}"),
        (topk > WIDEST_TOPK, f"k above {WIDEST_TOPK}"),
        (shape.dtype == torch.float64, "no float64"),
    )


def run(call: AttentionCall) -> Attended:
    """A statistic of the heads' mean weights is computed from these."""
    from lib.kernels.causal_op import attention

    q, k, v = call.expanded()
    columns, statistic, term = k.shape[2], call.statistic, call.transposed
    averaged = statistic is not None and statistic.head_average
    few = few_kept(call.kept, columns, averaged) if call.mean else 0
    window, alpha = -1, 0.0 if term is None else term.alpha
    if term is not None:
        window = columns if term.is_whole(columns) else term.window
    out, stat, means, mean_columns = attention(
        q,
        k,
        v,
        scale=call.scale,
        window=window,
        alpha=alpha,
        statistic="none" if statistic is None or averaged else statistic.kind,
        topk=1 if statistic is None else min(statistic.topk, WIDEST_TOPK),
        row_factor=call.row_scale,
        values=call.v is not None,
        mean=call.mean or averaged,
        kept=few,
        qkv=call.qkv,
    )
    if statistic is not None and averaged:
        stat = row_statistic(means.unsqueeze(1), statistic)
    return Attended(
        out,
        None if statistic is None else stat,
        Largest(means, mean_columns) if few else means if call.mean else None,
    )
