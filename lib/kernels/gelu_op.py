"""gelu(x W^T + b) V^T with GELU, and its derivative, inside the matrix products.

GELU is the tanh approximation of Hendrycks and Gimpel (arXiv 1606.08415, section 2).
A forward product leaves its sums beside their GELU, so that the backward product,
by V, can be multiplied by GELU's derivative as it is written: in between nothing
passes over a matrix as wide as the MLP but the sum that the bias needs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.gpu.device import to_autocast_type
from lib.kernels.cublaslt import KINDS, Epilogue, product
from lib.kernels.rows import packed

MULTIPLE = 8  # of widths, which the library asks of what it leaves beside


def _serves(x: Tensor) -> bool:
    """Whether cuBLASLt computes it; elsewhere, and outside autocast, torch does."""
    on_nvidia = x.device.type == "cuda" and torch.version.cuda is not None
    return on_nvidia and x.dtype in KINDS


@torch.library.custom_op("kablate::linear_gelu", mutates_args=())
def linear_gelu(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """gelu(s) and s = x W^T + b, both [M, N]; x [M, K], weight [N, K], bias [N]."""
    if not _serves(x):
        sums = F.linear(x, weight, bias)
        return F.gelu(sums, approximate="tanh"), sums
    out, sums = linear_gelu_shape(x, weight, bias)
    kind = Epilogue.GELU_AUX if bias is None else Epilogue.GELU_AUX_BIAS
    x, weight = packed(x), packed(weight)
    product(x, weight, kind, aux=sums, out=out, bias=bias)
    return out, sums


@linear_gelu.register_fake
def linear_gelu_shape(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What linear_gelu returns, unwritten."""
    shape = (x.shape[0], weight.shape[0])
    return x.new_empty(shape), x.new_empty(shape)


@torch.library.custom_op("kablate::gelu_slopes", mutates_args=())
def gelu_slopes(slopes: Tensor, weight: Tensor, sums: Tensor) -> Tensor:
    """(slopes V) gelu'(sums), [M, N]; slopes [M, K], weight V [K, N], sums [M, N]."""
    if not _serves(slopes):
        backward = torch.ops.aten.gelu_backward
        return backward(slopes @ weight, sums, approximate="tanh")
    out = torch.empty_like(sums)
    product(packed(slopes), packed(weight), Epilogue.DGELU, aux=sums, out=out)
    return out


@gelu_slopes.register_fake
def _(slopes: Tensor, weight: Tensor, sums: Tensor) -> Tensor:
    return torch.empty_like(sums)


@torch.library.custom_op("kablate::weight_slopes", mutates_args=())
def weight_slopes(slopes: Tensor, x: Tensor) -> Tensor:
    """slopes^T x in fp32 or more, [N, K], as the sums leave the product; slopes
    [M, N], x [M, K]."""
    if not _serves(x):
        return weight_slopes_shape(slopes, x).copy_(slopes.t() @ x)
    if slopes.shape[1] % MULTIPLE or x.shape[1] % MULTIPLE:
        return torch.mm(slopes.t(), x, out_dtype=torch.float32)
    out = weight_slopes_shape(slopes, x)
    product(packed(slopes), packed(x), Epilogue.NONE, out=out)
    return out


@weight_slopes.register_fake
def weight_slopes_shape(slopes: Tensor, x: Tensor) -> Tensor:
    """What weight_slopes returns, unwritten."""
    kind = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty((slopes.shape[1], x.shape[1]), dtype=kind)


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
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        x, into, outof, hidden, sums = ctx.saved_tensors
        of_into, of_bias, of_outof = ctx.types
        inner = gelu_slopes(slopes[0], outof, sums)
        high = torch.promote_types(inner.dtype, torch.float32)
        return (
            inner @ into,
            weight_slopes(inner, x).to(of_into),
            None if of_bias is None else inner.sum(0, dtype=high).to(of_bias),
            weight_slopes(slopes[0], hidden).to(of_outof),
        )


def through_gelu(x: Tensor, into: Tensor, bias: Tensor | None, outof: Tensor) -> Tensor:
    """gelu(x into^T + bias) outof^T in the type of autocast, [..., R].

    x [..., E], into [M, E], bias [M], outof [R, M]; M and E multiples of MULTIPLE.
    """
    rows, kind = to_autocast_type(x).flatten(0, -2), x.device.type
    with torch.autocast(kind, enabled=False):
        out = _ThroughGelu.apply(rows, into, bias, outof)
    return out.unflatten(0, x.shape[:-1])
