"""One causal attention interface and the choice of the path that serves it.

Shapes: B batch, H heads, S rows (queries), N columns (keys), D head width.
Rows are the last S of the N positions; S = N in training. Row i sees j <= i.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2.model.backends.request import (
    WIDEST_TOPK,
    AttentionRequest,
    Statistic,
    Transposed,
    backend_of,
    place_of_tensor,
)
from gpt2.settings.schema import few_kept

# torch may choose cuDNN's attention by itself, and then hands gradients to a plan made
# for another memory order. It serves here by name alone, through lib/kernels/cudnn.py.
torch.backends.cuda.enable_cudnn_sdp(False)


class Largest(NamedTuple):
    """The K largest of each row of a matrix [B, S, N], as values and columns [B, S, K];
    value 0 and column -1 where fewer are positive."""

    values: Tensor
    columns: Tensor

    def matrix(self, columns: int) -> Tensor:
        """[B, S, N] with zeros for all others."""
        zeros = self.values.new_zeros(*self.values.shape[:2], columns)
        return zeros.scatter_add(-1, self.columns.clamp_min(0).long(), self.values)


class Attended(NamedTuple):
    """Output [B, H, S, Dv]; if asked for, statistic [B, H or 1, S] and the
    weights' mean over heads [B, S, N], before dropout."""

    output: Tensor
    statistic: Tensor | None = None
    mean: Tensor | Largest | None = None


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    transposed: Transposed | None = None,
    statistic: Statistic | None = None,
    row_scale: Tensor | None = None,
    mean: bool = False,
    kept: int = 0,
    dropout: float = 0.0,
    backend: str = "auto",
    qkv: Tensor | None = None,
) -> Attended:
    """softmax over j <= i of scale * row_scale_i * (q_i.k_j + transposed) times v.

    q [B, H, S, D], k [B, H or 1, N, D], v [B, H or 1, N, Dv], row_scale
    [B, H, S] on the logits of a row. ``backend`` is one of BACKENDS: where it
    cannot serve, sdpa does, or else the reference (``path_of`` tells which).
    Paths agree up to rounding. ``kept``: so many of a row's mean weights are read (0:
    all), for paths that then give those alone. ``qkv`` [B, S, 3, H, D], if q, k and v
    are views of it, spares the kernels' gradients being put together.
    """
    request = AttentionRequest.of(q, k, v, transposed, statistic, mean, dropout)
    match backend_of(request, backend, place_of_tensor(q)):
        case "sdpa":
            return _sdpa(q, k, v, scale, transposed, row_scale, dropout)
        case "cudnn":
            return _cudnn(q, k, v, scale, transposed, row_scale)
        case "flex":
            return _flex(q, k, v, scale, transposed, statistic, row_scale)
        case "triton":
            return _triton(
                q, k, v, scale, transposed, statistic, row_scale, mean, kept, qkv=qkv
            )
    return reference(
        q,
        k,
        v,
        scale=scale,
        transposed=transposed,
        statistic=statistic,
        row_scale=row_scale,
        mean=mean,
        dropout=dropout,
    )


# ---- the paths --------------------------------------------------------------------


def _sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    transposed: Transposed | None,
    row_scale: Tensor | None,
    dropout: float,
) -> Attended:
    """torch's fused attention: FlashAttention where there is one, never cuDNN's."""
    q, k, v = _plain(q, k, v, transposed, row_scale)
    out = F.scaled_dot_product_attention(
        q, k, v, dropout_p=dropout, is_causal=True, scale=scale
    )
    return Attended(out)


def _cudnn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    transposed: Transposed | None,
    row_scale: Tensor | None,
) -> Attended:
    """cuDNN's attention; see lib/kernels/cudnn.py."""
    from lib.kernels.cudnn import attention

    return Attended(attention(*_plain(q, k, v, transposed, row_scale), scale))


def _plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    transposed: Transposed | None,
    row_scale: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of plain attention with the same scores. A
    whole-context transposed term doubles the width: [q, alpha k].[k, q] =
    q_i.k_j + alpha k_i.q_j, alpha on one side only."""
    if transposed is not None:
        k = k.expand_as(q)
        weighted = transposed.alpha_per_head * transposed.keys
        q, k = torch.cat([q, weighted], -1), torch.cat([k, transposed.queries], -1)
    if row_scale is not None:
        q = q * row_scale.unsqueeze(-1).to(q.dtype)
    k, v = k.expand(*q.shape[:2], -1, -1), v.expand(*q.shape[:2], -1, -1)
    return q.to(v.dtype), k.to(v.dtype), v


def _flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    transposed: Transposed | None,
    statistic: Statistic | None,
    row_scale: Tensor | None,
) -> Attended:
    """FlexAttention; see gpt2/model/backends/flex.py."""
    from gpt2.model.backends import flex

    q, k, v = _alike(q, k, v)
    columns_k, columns_q = k, q
    factor = 1.0 if row_scale is None else row_scale.unsqueeze(-1).to(q.dtype)
    rows_q = q * factor
    rows, columns = rows_q, columns_k
    if transposed is not None:
        weighted = (transposed.alpha_per_head * k * factor).to(q.dtype)
        columns = torch.cat([columns_k, columns_q], -1)
        window = transposed.window
        if not transposed.is_whole(k.shape[2]):
            return Attended(
                flex.banded(rows_q, columns, v, weighted, scale=scale, window=window)
            )
        rows = torch.cat([rows_q, weighted], -1)
    if statistic is None:
        return Attended(flex.causal(rows, columns, v, scale=scale))
    return Attended(*flex.with_entropy(rows, columns, v, scale=scale))


def _alike(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All heads spelled out, and one type, as fused kernels want them."""
    k, v = (x.expand(*q.shape[:2], -1, -1) for x in (k, v))
    return q.to(v.dtype), k.to(v.dtype), v


def _triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    transposed: Transposed | None,
    statistic: Statistic | None,
    row_scale: Tensor | None,
    mean: bool,
    kept: int = 0,
    values: bool = True,
    qkv: Tensor | None = None,
) -> Attended:
    """The kernels of lib/kernels/causal.py. A statistic of the heads' mean weights
    is taken from these."""
    from lib.kernels.causal_op import attention

    q, k, v = _alike(q, k, v)
    averaged = statistic is not None and statistic.head_average
    kind = "none" if statistic is None or averaged else statistic.kind
    few = few_kept(kept, k.shape[2], averaged) if mean else 0
    window, alpha = -1, 0.0 if transposed is None else transposed.alpha
    if transposed is not None:
        whole = transposed.is_whole(k.shape[2])
        window = k.shape[2] if whole else transposed.window
    out, stat, means, columns = attention(
        q,
        k,
        v,
        scale=scale,
        window=window,
        alpha=alpha,
        statistic=kind,
        topk=1 if statistic is None else min(statistic.topk, WIDEST_TOPK),
        row_factor=row_scale,
        values=values,
        mean=mean or averaged,
        kept=few,
        qkv=qkv,
    )
    found = None if statistic is None else stat
    if statistic is not None and averaged:
        found = row_statistic(means.unsqueeze(1), statistic)
    if few:
        return Attended(out, found, Largest(means, columns))
    return Attended(out, found, means if mean else None)


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    transposed: Transposed | None = None,
    statistic: Statistic | None = None,
    row_scale: Tensor | None = None,
    mean: bool = False,
    dropout: float = 0.0,
) -> Attended:
    """The formulas as S x N matrices in fp32 (or float64 for such inputs).

    Arguments as ``attend`` has them.
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    with torch.autocast(q.device.type, enabled=False):
        weights = _weights(q.to(wide), k.to(wide), scale, transposed, row_scale)
        stat = None if statistic is None else row_statistic(weights, statistic)
        dropped = F.dropout(weights, dropout) if dropout else weights
        out = (dropped @ v.to(wide)).to(v.dtype)
    return Attended(out, stat, weights.mean(1) if mean else None)


def statistic_of(
    q: Tensor,
    k: Tensor,
    *,
    scale: float,
    statistic: Statistic,
    transposed: Transposed | None = None,
    backend: str = "auto",
) -> Tensor:
    """The statistic [B, H or 1, S] of the rows ``attend`` would weigh with."""
    request = AttentionRequest.of(q, k, q, transposed, statistic, values=False)
    if backend_of(request, backend, place_of_tensor(q)) == "triton":
        found = _triton(
            q, k, q, scale, transposed, statistic, None, mean=False, values=False
        )
        assert found.statistic is not None, "a statistic was asked for"
        return found.statistic
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    with torch.autocast(q.device.type, enabled=False):
        weights = _weights(q.to(wide), k.to(wide), scale, transposed, None)
        return row_statistic(weights, statistic)


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
    if statistic.head_average:
        weights = weights.mean(1, keepdim=True)
    rows, columns = weights.shape[-2:]
    visible = row_positions(rows, columns, weights.device).squeeze(1) + 1
    visible = visible.to(weights.dtype)
    match statistic.kind:
        case "topk":
            return weights.topk(min(statistic.topk, columns), dim=-1).values.sum(-1)
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
