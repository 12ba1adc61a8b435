"""Attention as loops over rows and keys: the truth the fast paths are held to.

Deliberately plain and slow, and sharing no line with
gpt2/model/backends.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gpt2.model.attention import Heads
from gpt2.model.gating import StatisticGate
from gpt2.settings.schema import Mechanisms


def naive_weights(
    heads: Heads, scale: float, x: Mechanisms, alpha: Tensor | float, factor: Tensor
) -> list[list[list[Tensor]]]:
    """p[b][h][i], a vector over j <= i; ``factor`` [B, H, T] scales the logits."""
    batch, count, length, _ = heads.q.shape
    return [
        [
            [
                _row(heads, b, h, i, scale, x, alpha) * factor[b, h, i]
                for i in range(length)
            ]
            for h in range(count)
        ]
        for b in range(batch)
    ]


def _row(
    heads: Heads,
    b: int,
    h: int,
    i: int,
    scale: float,
    x: Mechanisms,
    alpha: Tensor | float,
) -> Tensor:
    """Logits of row i over its visible keys."""
    seen = slice(i + 1)
    logits = heads.k[b, h, seen] @ heads.q[b, h, i]
    if x.ra:
        weight = alpha if isinstance(alpha, float) else alpha[h]
        first = max(0, i - x.ra_window) if x.ra_window else 0
        near = heads.row_q[b, h, first : i + 1] @ heads.row_k[b, h, i]
        logits = logits + weight * torch.cat([near.new_zeros(first), near])
    return logits * scale


def naive_statistic(row: Tensor, kind: str, topk: int) -> Tensor:
    """The statistic of one row of weights [visible keys]."""
    visible = len(row)
    if kind == "topk":
        return row.sort(descending=True).values[:topk].sum()
    if kind == "max":
        return row.max()
    if kind == "rms":
        return (row.pow(2).sum() / visible).sqrt()
    assert kind == "entropy", kind
    if visible == 1:
        return row.sum() * 0.0
    return -sum((p * p.log() for p in row), row.new_zeros(())) / math.log(visible)


def naive_attend(
    heads: Heads,
    scale: float,
    x: Mechanisms,
    alpha: Tensor | float,
    gate: StatisticGate | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output [B, H, T, D], statistic [B, H, T] and mean weights [B, T, T].

    The statistic is of the weights before a gate at the weights acts.
    """
    ones = heads.q.new_ones(heads.q.shape[:3])
    weights = _softmax(naive_weights(heads, scale, x, alpha, ones))
    statistic = _statistics(weights, x) if gate is not None else ones
    if gate is not None and x.ract_placement == "weights":
        read = statistic.detach() if x.ract_detach else statistic
        opened = torch.sigmoid(gate.scale[:, None] * read + gate.bias[:, None])
        factor = 1 - x.ract_mix + x.ract_mix * opened
        weights = _softmax(naive_weights(heads, scale, x, alpha, factor))
    output = torch.stack(
        [
            torch.stack(
                [
                    torch.stack([p @ heads.v[b, h, : len(p)] for p in rows])
                    for h, rows in enumerate(per_head)
                ]
            )
            for b, per_head in enumerate(weights)
        ]
    )
    return output, statistic, _mean(weights)


def _softmax(logits: list[list[list[Tensor]]]) -> list[list[list[Tensor]]]:
    return [[[row.softmax(0) for row in rows] for rows in heads] for heads in logits]


def _statistics(weights: list[list[list[Tensor]]], x: Mechanisms) -> Tensor:
    found = []
    for heads in weights:
        if x.ract_head_average:
            mean = [torch.stack(rows).mean(0) for rows in zip(*heads, strict=True)]
            heads = [mean] * len(heads)
        found.append(
            torch.stack(
                [
                    torch.stack(
                        [
                            naive_statistic(p, x.ract_statistic, x.ract_topk)
                            for p in rows
                        ]
                    )
                    for rows in heads
                ]
            )
        )
    return torch.stack(found)


def _mean(weights: list[list[list[Tensor]]]) -> Tensor:
    batch = []
    for heads in weights:
        length = len(heads[0])
        rows = [torch.stack([head[i] for head in heads]).mean(0) for i in range(length)]
        padded = [torch.cat([p, p.new_zeros(length - len(p))]) for p in rows]
        batch.append(torch.stack(padded))
    return torch.stack(batch)
