"""torch's fused attention: FlashAttention where there is one, never cuDNN's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2.model.backends.call import (
    Attended,
    AttentionCall,
    CallShape,
    Platform,
    first_reason,
)

# torch may choose cuDNN's attention by itself, and then hands gradients to a plan made
# for another memory order. It serves here by name alone, through lib/kernels/cudnn.py.
torch.backends.cuda.enable_cudnn_sdp(False)


def unsupported(shape: CallShape, platform: Platform) -> str:
    """Why this backend cannot serve such a call; empty if it can."""
    return first_reason(
        (shape.statistic is not None, "no statistics of its weights"),
        (shape.mean, "no weights to average"),
        (shape.banded, "no band"),
        (shape.rows != shape.columns, "no decoding"),
    )


def run(call: AttentionCall) -> Attended:
    q, k, v = plain(call)
    return Attended(
        F.scaled_dot_product_attention(
            q, k, v, dropout_p=call.dropout, is_causal=True, scale=call.scale
        )
    )


def plain(call: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of plain attention with the same scores.

    A whole-context transposed term doubles the width: [q, alpha k].[k, q] = q_i.k_j +
    alpha k_i.q_j, with alpha on one side only, so that any sign and zero work.
    """
    q, k, v, term = call.q, call.k, call.v, call.transposed
    assert v is not None, "plain attention needs values"
    if term is not None:
        k = k.expand_as(q)
        weighted = term.alpha_per_head * term.keys
        q, k = torch.cat([q, weighted], -1), torch.cat([k, term.queries], -1)
    if call.row_scale is not None:
        q = q * call.row_scale.unsqueeze(-1).to(q.dtype)
    k, v = k.expand(*q.shape[:2], -1, -1), v.expand(*q.shape[:2], -1, -1)
    return q.to(v.dtype), k.to(v.dtype), v
