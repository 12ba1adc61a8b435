"""gelu(x W^T + b) V^T with GELU, and its derivative, inside the matrix products.

GELU is the tanh approximation of Hendrycks and Gimpel (arXiv 1606.08415, section 2).
The forward product also returns its sums, the argument of GELU, so that the backward
product by V can be multiplied by GELU's derivative as it is written: no other pass over
a matrix as wide as the MLP is needed than the sum for the bias.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.gpu.device import to_autocast_type
from lib.kernels.cublaslt import DTYPES, product
from lib.kernels.rows import packed

MULTIPLE = 8  # of widths: the library pads GELU's argument to it


def _serves(rows: Tensor) -> bool:
    """Whether cuBLASLt computes it; torch does elsewhere, outside autocast, and for a
    single row, which has no definite memory order."""
    on_nvidia = rows.device.type == "cuda" and torch.version.cuda is not None
    return on_nvidia and rows.dtype in DTYPES and rows.shape[0] > 1


@torch.library.custom_op("kablate::linear_gelu", mutates_args=())
def linear_gelu(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """gelu(s) and s = x W^T + b, both [M, N]; x [M, K], weight [N, K], bias [N]."""
    if not _serves(x):
        sums = F.linear(x, weight, bias)
        return F.gelu(sums, approximate="tanh"), sums
    epilogue = "GELU_AUX" if bias is None else "GELU_AUX_BIAS"
    out, found = product(packed(x), packed(weight).t(), epilogue, bias=bias)
    assert found is not None, "GELU's argument was asked for"
    return out, found


@linear_gelu.register_fake
def _(x, weight, bias):  # types: those of linear_gelu
    shape = (x.shape[0], weight.shape[0])
    return x.new_empty(shape), x.new_empty(shape)


@torch.library.custom_op("kablate::gelu_backward", mutates_args=())
def gelu_backward(grad: Tensor, weight: Tensor, sums: Tensor) -> Tensor:
    """(grad V) gelu'(sums), [M, N]; grad [M, K], weight V [K, N], sums [M, N]."""
    if not _serves(grad):
        backward = torch.ops.aten.gelu_backward
        return backward(grad @ weight, sums, approximate="tanh")
    return product(packed(grad), packed(weight), "DGELU", aux=sums.contiguous())[0]


@gelu_backward.register_fake
def _(grad, weight, sums):  # types: those of gelu_backward
    return torch.empty_like(sums)


@torch.library.custom_op("kablate::weight_gradient", mutates_args=())
def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """grad^T x, [N, K], in fp32 or more, without rounding the sums to 16 bits; grad
    [M, N], x [M, K]."""
    high = torch.promote_types(x.dtype, torch.float32)
    if not _serves(x):
        return (grad.t() @ x).to(high)
    if grad.shape[1] % MULTIPLE or x.shape[1] % MULTIPLE:
        return torch.mm(grad.t(), x, out_dtype=high)
    return product(packed(grad).t(), packed(x), dtype=high)[0]


@weight_gradient.register_fake
def _(grad, x):  # types: those of weight_gradient
    high = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty((grad.shape[1], x.shape[1]), dtype=high)


class _ThroughGelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, into: Tensor, bias: Tensor | None, outof: Tensor
    ) -> Tensor:
        ctx.types = [None if t is None else t.dtype for t in (into, bias, outof)]
        into, outof = into.to(x.dtype), outof.to(x.dtype)
        bias = None if bias is None else bias.to(x.dtype)
        hidden, sums = linear_gelu(x, into, bias)
        ctx.save_for_backward(x, into, outof, hidden, sums)
        return hidden @ outof.t()

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        x, into, outof, hidden, sums = ctx.saved_tensors
        of_into, of_bias, of_outof = ctx.types
        inner = gelu_backward(grad[0], outof, sums)
        high = torch.promote_types(inner.dtype, torch.float32)
        return (
            inner @ into,
            weight_gradient(inner, x).to(of_into),
            None if of_bias is None else inner.sum(0, dtype=high).to(of_bias),
            weight_gradient(grad[0], hidden).to(of_outof),
        )


def through_gelu(x: Tensor, into: Tensor, bias: Tensor | None, outof: Tensor) -> Tensor:
    """gelu(x into^T + bias) outof^T in the type of autocast, [..., R].

    x [..., E], into [M, E], bias [M], outof [R, M]; M and E multiples of MULTIPLE.
    """
    rows, kind = to_autocast_type(x).flatten(0, -2), x.device.type
    with torch.autocast(kind, enabled=False):
        out = _ThroughGelu.apply(rows, into, bias, outof)
    return out.unflatten(0, x.shape[:-1])
