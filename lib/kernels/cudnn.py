"""cuDNN's causal attention, with the output's gradient always in one memory order.

cuDNN compiles a backward plan for the strides of the first call, and torch looks that
plan up by the strides of q, k and v alone, not by those of the output's gradient. The
same values in another memory order then give wrong gradients, silently: relative error
1.41 (H200, torch 2.11.0, cuDNN 9.19; similar faults in flashinfer-ai/flashinfer#4146
and #4270). Here the gradient is laid out as [B, T, H, D] before each call, inside an
operator that torch.compile does not look into. torch may not choose this backend by
itself (gpt2/model/backends/sdpa.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lib.kernels.rows import packed


@torch.library.custom_op("kablate::cudnn_attention", mutates_args=())
def forward_op(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """softmax over j <= i of scale q_i.k_j, times v [B, H, T, D]; log-sum-exp."""
    forward = torch.ops.aten._scaled_dot_product_cudnn_attention
    out, lse = forward(q, k, v, None, True, 0.0, True, False, scale=scale)[:2]
    return _tokens_first(out), lse


@forward_op.register_fake
def _(q, k, v, scale):  # types: those of forward_op
    lse = q.new_empty((*q.shape[:3], 1), dtype=torch.float32)
    return _tokens_first(q.new_empty(*q.shape[:3], v.shape[3])), lse


def _tokens_first(x: Tensor) -> Tensor:
    """x [B, H, T, D], laid out in memory as a contiguous [B, T, H, D]."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


@torch.library.custom_op("kablate::cudnn_attention_backward", mutates_args=())
def backward_op(
    slope: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from that of the output."""
    backward = torch.ops.aten._scaled_dot_product_cudnn_attention_backward
    # Seed and offset of dropout, which is off.
    random = torch.zeros((), dtype=torch.int64, device=q.device)
    t, whole = q.shape[2], (None, None, None)
    dq, dk, dv = backward(
        *(_tokens_first(slope), q, k, v, out, lse, random, random),
        *(*whole, t, t, 0.0, True),
        scale=scale,
    )
    return _tokens_first(dq), _tokens_first(dk), _tokens_first(dv)


@backward_op.register_fake
def _(slope, q, k, v, out, lse, scale):  # types: those of backward_op
    dq, dk, dv = (_tokens_first(x.new_empty(x.shape)) for x in (q, k, v))
    return dq, dk, dv


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, slope: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    return (*backward_op(slope, *ctx.saved_tensors, ctx.scale), None)


forward_op.register_autograd(_backward, setup_context=_save)


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Causal attention [B, H, T, Dv] of q, k [B, H, T, D] and v [B, H, T, Dv].

    In 16 bits, D and Dv multiples of 8 up to WIDEST_HEAD. Raises RuntimeError where
    cuDNN has no kernel.
    """
    return forward_op(packed(q), packed(k), packed(v), scale)[0]
