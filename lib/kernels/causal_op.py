"""The causal kernels as torch operators with gradients, opaque to torch.compile.

Importing this needs Triton. On a CPU the kernels run under TRITON_INTERPRET=1 only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from lib.kernels import causal, causal_backward
from lib.kernels.rows import packed
from lib.kernels.tiles import INTERPRETED, Tiled, precision, slots
from lib.kernels.topk_rows import spread, write_largest

STATISTICS = ("none", "topk", "max", "entropy", "rms")
LOG2E = 1.0 / math.log(2.0)

_forward = Tiled(causal.forward_kernel)
_rows = Tiled(causal_backward.rows_kernel)
_columns = Tiled(causal_backward.columns_kernel, restore=("dq_ptr", "dk_ptr"))
_mean = Tiled(causal.mean_kernel)

TILED = (_forward, _rows, _columns, _mean)


# Output, base-2 lse, statistic, threshold, mean weights and their columns.
Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class KernelOptions:
    """Options that the kernels of one call share."""

    scale: float
    alpha: float
    window: int  # negative: no band
    statistic: int
    topk: int
    values: bool
    mean: bool
    kept: int  # how many mean weights of a row are given; 0: all

    @property
    def band(self) -> bool:
        return self.window >= 0

    @property
    def reach(self) -> int:
        """The window; 0 without a band, so that the loops are cut at the diagonal."""
        return max(self.window, 0)


def _strides(*tensors: Tensor) -> list[int]:
    return [s for x in tensors for s in x.stride()[:3]]


def _width(n: int) -> int:
    return max(16, triton.next_power_of_2(n))


def _flags(
    x: KernelOptions, q: Tensor, v: Tensor, factor: Any, alpha: Any
) -> dict[str, Any]:
    return {
        "D": q.shape[3],
        "DV": v.shape[3],
        "BD": _width(q.shape[3]),
        "BDV": _width(v.shape[3]),
        "BAND": x.band,
        "STAT": x.statistic,
        "VALUES": x.values,
        "FACTOR": factor is not None,
        "LEARNED": alpha is not None,
        "P": precision(q),
    }


def _apart(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """q, k, v [B, H, T, D], given as such or as one tensor [B, T, 3, H, D]."""
    if len(inputs) == 3:
        return inputs
    return [part.transpose(1, 2) for part in inputs[0].unbind(2)]


def _tokens_first(like: Tensor, width: int) -> Tensor:
    """Empty [B, H, T, width], laid out in memory as [B, T, H, width]."""
    b, h, t, _ = like.shape
    return like.new_empty(b, t, h, width).transpose(1, 2)


def _per_row(q: Tensor, there: bool) -> Tensor:
    shape = q.shape[:3] if there else (0,)
    return q.new_empty(shape, dtype=torch.float32)


def _empty_results(q: Tensor, v: Tensor, x: KernelOptions) -> Results:
    b, _, t, _ = q.shape
    width = x.kept or t
    return (
        _tokens_first(q, v.shape[3]) if x.values else q.new_empty(0),
        _per_row(q, True),
        _per_row(q, x.statistic != 0),
        _per_row(q, STATISTICS[x.statistic] in ("topk", "max")),
        q.new_empty((b, t, width) if x.mean else (0,), dtype=torch.float32),
        q.new_empty((b, t, x.kept) if x.kept else (0,), dtype=torch.int32),
    )


@torch.library.custom_op("kablate::causal", mutates_args=())
def causal_op(
    inputs: Sequence[Tensor],
    factor: Tensor | None,
    alphas: Tensor | None,
    scale: float,
    alpha: float,
    window: int,
    statistic: int,
    topk: int,
    values: bool,
    mean: bool,
    kept: int,
) -> Results:
    """Results of ``attention``, with the numbers per row that its gradients need."""
    q, k, v = _apart(inputs)
    x = KernelOptions(scale, alpha, window, statistic, topk, values, mean, kept)
    results = _empty_results(q, v, x)
    out, lse, stat, threshold, means, columns = results
    b, h, t, _ = q.shape
    o = out if x.values else q
    flags = _flags(x, q, v, factor, alphas)
    c = scale * LOG2E
    _forward[lambda meta: (b * h, triton.cdiv(t, meta["BM"]))](
        q, k, v, o, lse, stat, threshold, factor, alphas,
        *_strides(q, k, v, o), c, alpha, h, t, x.reach, topk,
        K=slots(q, topk), **flags,
    )  # fmt: skip
    if x.mean:
        whole = means.new_empty(b, t, t) if x.kept else means
        read = ("D", "BD", "BAND", "FACTOR", "LEARNED", "P")
        _mean[
            lambda meta: (triton.cdiv(t, meta["BM"]), triton.cdiv(t, meta["BN"]), b)
        ](
            q, k, lse, factor, alphas, whole,
            *_strides(q, k), c, alpha, h, t, x.reach,
            WHOLE=not x.kept, **{name: flags[name] for name in read},
        )  # fmt: skip
        if x.kept:
            write_largest(whole, columns, means)
    return results


@causal_op.register_fake
def _(
    inputs, factor, alphas,
    scale, alpha, window, statistic, topk, values, mean, kept,
):  # fmt: skip
    x = KernelOptions(scale, alpha, window, statistic, topk, values, mean, kept)
    q, _, v = _apart(inputs)
    return _empty_results(q, v, x)


def _empty_gradients(
    inputs: Sequence[Tensor], x: KernelOptions, factor: bool, learned: bool
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Empty gradients of the inputs, the row factor and alpha per head."""
    q, k, v = _apart(inputs)
    if len(inputs) == 1:
        slopes = [torch.empty_like(inputs[0])]
    else:
        slopes = [_tokens_first(q, part.shape[3]) for part in (q, k)]
        slopes.append(_tokens_first(q, v.shape[3]) if x.values else q.new_empty(0))
    heads = q.shape[1] if learned else 0
    return slopes, _per_row(q, factor), q.new_empty(heads, dtype=torch.float32)


@torch.library.custom_op("kablate::causal_backward", mutates_args=())
def backward_op(
    do: Tensor | None,
    dstat: Tensor | None,
    dmean: Tensor | None,
    inputs: Sequence[Tensor],
    o: Tensor,
    lse: Tensor,
    stat: Tensor,
    threshold: Tensor,
    columns: Tensor,
    factor: Tensor | None,
    alphas: Tensor | None,
    scale: float,
    alpha: float,
    window: int,
    statistic: int,
    values: bool,
    mean: bool,
    kept: int,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Gradients of the inputs, the row factor and alpha per head; dmean [B, T, K]
    for the K kept."""
    x = KernelOptions(scale, alpha, window, statistic, 0, values, mean, kept)
    q, k, v = _apart(inputs)
    slopes, dfactor, dalpha = _empty_gradients(
        inputs, x, factor is not None, alphas is not None
    )
    dq, dk, dv = _apart(slopes)
    b, h, t, _ = q.shape
    flags = _flags(x, q, v, factor, alphas)
    o, do, out = (o, do, dv) if x.values else (q, q, q)
    assert do is not None, "an output without its gradient"
    delta = torch.empty_like(lse)
    # One sum for alpha per tile of rows, and zeros where tiles are larger than the
    # smallest: adding them up atomically would make the result depend on the order of
    # programs.
    tiles = triton.cdiv(t, INTERPRETED.rows) if alphas is not None else 0
    parts = q.new_zeros(b, h, tiles, dtype=torch.float32)
    c = scale * LOG2E
    _rows[lambda meta: (b * h, triton.cdiv(t, meta["BM"]))](
        q, k, v, o, do, dq, dk, lse, stat, threshold, dstat, dmean, columns, factor,
        alphas, delta, dfactor, parts, *_strides(q, k, v, o, do, dq, dk), tiles,
        c, scale, alpha, h, t, x.reach, MEAN=mean and not kept, KEPT=kept, **flags,
    )  # fmt: skip
    if kept:
        assert dmean is not None, "mean weights without their gradient"
        dmean = spread(columns, dmean, t, _narrow_type(q), whole=False)
    _columns[lambda meta: (b * h, triton.cdiv(t, meta["BN"]))](
        q, k, v, do, dq, dk, out, lse, stat, threshold, dstat, dmean, factor, alphas,
        delta, *_strides(q, k, v, do, dq, dk, out),
        c, scale, alpha, h, t, x.reach, MEAN=mean, **flags,
    )  # fmt: skip
    if alphas is not None:
        dalpha = parts.sum((0, 2))
    return slopes, dfactor, dalpha


@backward_op.register_fake
def _(
    do, dstat, dmean, inputs, o, lse, stat, threshold, columns, factor, alphas,
    scale, alpha, window, statistic, values, mean, kept,
):  # fmt: skip
    x = KernelOptions(scale, alpha, window, statistic, 0, values, mean, kept)
    return _empty_gradients(inputs, x, factor is not None, alphas is not None)


def _save(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
    parts, factor, alphas, *numbers = inputs
    o, lse, stat, threshold, _, columns = output
    ctx.save_for_backward(factor, alphas, o, lse, stat, threshold, columns, *parts)
    ctx.numbers = numbers


def _backward(
    ctx: Any, do: Any, _lse: Any, dstat: Any, _t: Any, dmean: Any, _c: Any
) -> Any:
    factor, alphas, o, lse, stat, threshold, columns, *inputs = ctx.saved_tensors
    scale, alpha, window, statistic, _, values, mean, kept = ctx.numbers
    if mean:
        kind = torch.float32 if kept else _narrow_type(inputs[0])
        dmean = dmean.to(kind).contiguous()
    slopes, dfactor, dalpha = backward_op(
        packed(do).to(inputs[-1].dtype) if values else None,
        dstat.float().contiguous() if statistic else None,
        dmean if mean else None,
        inputs, o, lse, stat, threshold, columns, factor, alphas,
        scale, alpha, window, statistic, values, mean, kept,
    )  # fmt: skip
    if not values:
        slopes = [*slopes[:2], None]
    return (
        slopes,
        None if factor is None else dfactor,
        None if alphas is None else dalpha,
        *[None] * 8,
    )


def _narrow_type(q: Tensor) -> torch.dtype:
    """dtype of a whole dM: bf16 if q's is. The tiles of all heads read it, so its size
    counts, and they add it to numbers that are then rounded to bf16 anyway."""
    return torch.bfloat16 if q.dtype == torch.bfloat16 else torch.float32


causal_op.register_autograd(_backward, setup_context=_save)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    window: int = -1,
    alpha: float | Tensor = 0.0,
    statistic: str = "none",
    topk: int = 1,
    row_factor: Tensor | None = None,
    values: bool = True,
    mean: bool = False,
    kept: int = 0,
    qkv: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(output [B, H, T, Dv], statistic [B, H, T], mean weights [B, T, T], columns).

    Causal. q, k [B, H, T, D], v [B, H, T, Dv] of one type; window < 0: no transposed
    band; alpha: a number or one per head [H]; widths and topk up to those of
    lib/kernels/rows.py; row_factor
    [B, H, T] on a row's logits. kept: of each row's mean weights only that many,
    [B, T, kept] with their columns (lib/kernels/topk_rows.py). What is not asked for
    comes back empty. ``qkv`` [B, T, 3, H, D]: the tensor that q, k and v are views of;
    their gradients are then written into one tensor, as the projection's backward pass
    reads them, instead of being concatenated.
    """
    number = alpha if isinstance(alpha, float) else 0.0
    alphas = None if isinstance(alpha, float) else alpha.float().contiguous()
    factor = None if row_factor is None else row_factor.float().contiguous()
    apart = [packed(q), packed(k), packed(v)]
    inputs = apart if qkv is None or not values else [qkv.contiguous()]
    out, _, stat, _, means, columns = causal_op(
        inputs, factor, alphas, scale, number, window,
        STATISTICS.index(statistic), topk if statistic == "topk" else 1, values, mean,
        kept,
    )  # fmt: skip
    return out, stat, means, columns
