"""The formulas as S x N matrices in fp32 (or float64 for such inputs).

It supports every call, decoding included, and is the truth for the other backends.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2.model.backends.call import (
    Attended,
    AttentionCall,
    CallShape,
    Platform,
    Statistic,
    Transposed,
)


def unsupported(shape: CallShape, platform: Platform) -> str:
    return ""


def run(call: AttentionCall) -> Attended:
    q, k, v = call.q, call.k, call.v
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    with torch.autocast(q.device.type, enabled=False):
        weights = _weights(
            q.to(wide), k.to(wide), call.scale, call.transposed, call.row_scale
        )
        stat = None
        if call.statistic is not None:
            stat = row_statistic(weights, call.statistic)
        if v is None:
            return Attended(q.new_empty(0), stat)
        dropped = F.dropout(weights, call.dropout) if call.dropout else weights
        out = (dropped @ v.to(wide)).to(v.dtype)
    return Attended(out, stat, weights.mean(1) if call.mean else None)


def _weights(
    q: Tensor,
    k: Tensor,
    scale: float,
    transposed: Transposed | None,
    row_scale: Tensor | None,
) -> Tensor:
    rows, columns = q.shape[2], k.shape[2]
    distance = row_positions(rows, columns, q.device) - torch.arange(
        columns, device=q.device
    )
    scores = q @ k.transpose(-1, -2)
    if transposed is not None:
        scores = scores + _transposed_scores(transposed, distance, columns)
    scores = scores * scale
    if row_scale is not None:
        scores = scores * row_scale.unsqueeze(-1)
    return scores.masked_fill(distance < 0, float("-inf")).softmax(-1)


def row_positions(rows: int, columns: int, device: torch.device) -> Tensor:
    """Positions of the rows among the columns, [S, 1]."""
    return torch.arange(columns - rows, columns, device=device).unsqueeze(1)


def _transposed_scores(t: Transposed, distance: Tensor, columns: int) -> Tensor:
    scores = t.keys.to(t.queries.dtype) @ t.queries.transpose(-1, -2)
    scores = F.pad(scores, (columns - scores.shape[-1], 0))
    alpha = t.alpha_per_head
    if t.is_whole(columns):
        return alpha * scores
    return alpha * scores.masked_fill(distance > t.window, 0.0)


def row_statistic(weights: Tensor, statistic: Statistic) -> Tensor:
    """Statistic of each row's weights [B, H, S, N] -> [B, H or 1, S].

    Normalised by the visible keys i + 1 and never by the length N, which would
    make it depend on the future.
    """
    rows, columns = weights.shape[-2:]
    visible = row_positions(rows, columns, weights.device).squeeze(1) + 1
    return statistic_of(weights, statistic, visible)


def statistic_of(weights: Tensor, statistic: Statistic, visible: Tensor) -> Tensor:
    """As ``row_statistic``; ``visible`` [S]: the number of keys that each row sees."""
    if statistic.head_average:
        weights = weights.mean(1, keepdim=True)
    visible = visible.to(weights.dtype)
    match statistic.kind:
        case "topk":
            k = min(statistic.topk, weights.shape[-1])
            return weights.topk(k, dim=-1).values.sum(-1)
        case "max":
            return weights.amax(-1)
        case "entropy":
            # Zeros contribute nothing, and their infinite slope must not either.
            logs = torch.where(weights > 0, weights, 1.0).log()
            return -(weights * logs).sum(-1) / visible.clamp_min(2).log()
        case "rms":
            return (weights.square().sum(-1) / visible).sqrt()
        case kind:
            raise AssertionError(f"no such statistic: {kind}")
