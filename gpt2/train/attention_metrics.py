"""Attention metrics by layer and head, measured on a few rows and without gradient.

Memory is B x H x rows x T, never T x T.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gpt2.mechanisms.needs import WHOLE_CONTEXT
from gpt2.model.attention import CausalAttention, Heads
from gpt2.model.gpt import GPT


@dataclass(frozen=True, slots=True)
class HeadMetrics:
    """Metrics of one layer. Pruned heads, whose queries are all zero, are left out.

    heads [A]: numbers of the others. entropy [B, A, R]: of the weights of each row, in
    nats. relative: the same over ln(visible keys), 1 if all keys weigh alike.
    reciprocity [B, A]: correlation over the band's pairs j < i of the scores q_i.k_j
    with their transposed counterparts q_j.k_i. alpha [A]: of RA; None without it.
    """

    heads: Tensor
    entropy: Tensor
    relative: Tensor
    reciprocity: Tensor
    alpha: Tensor | None


def attention_metrics(
    model: GPT, tokens: Tensor, rows: int, window: int
) -> dict[str, list[float]]:
    """For each layer, means over batch and heads of tokens [B, T]: ``relative`` as
    "attention_entropy", and ``reciprocity``."""
    found = head_metrics(model, tokens, rows, window)
    return {
        "attention_entropy": [layer.relative.mean().item() for layer in found],
        "reciprocity": [layer.reciprocity.mean().item() for layer in found],
    }


@torch.no_grad()
def head_metrics(
    model: GPT, tokens: Tensor, rows: int, window: int
) -> list[HeadMetrics]:
    """Metrics of each layer for tokens [B, T], of ``rows`` evenly spaced rows that see
    more than one key; window: of the band, WHOLE_CONTEXT for all pairs."""
    found: list[HeadMetrics] = []

    def watch(layer: CausalAttention, _: nn.Module, __: Any, heads: Heads) -> None:
        found.append(_measure(layer, heads, rows, window))

    with ExitStack() as hooks:
        for block in model.layers():
            hook = partial(watch, block.attn)
            hooks.enter_context(block.attn.projection.register_forward_hook(hook))
        model.hidden(model.embed(tokens))
    return found


def _measure(
    layer: CausalAttention, heads: Heads, rows: int, window: int
) -> HeadMetrics:
    heads, term = layer.scored(heads)
    q, k = heads.q.float(), heads.k.float()
    length = q.shape[2]
    # Row 0 sees one key: relative would be 0 / 0.
    chosen = torch.linspace(1, length - 1, min(rows, length - 1), device=q.device)
    chosen = chosen.round().long().unique()
    distance = chosen[:, None] - torch.arange(length, device=q.device)
    scores = q[:, :, chosen] @ k.transpose(-1, -2)
    # The rows of the transposed scores: how much key i asks for query j.
    mirrored = k.expand_as(q)[:, :, chosen] @ q.transpose(-1, -2)
    reach = length if window == WHOLE_CONTEXT else window
    band = (distance > 0) & (distance <= reach)
    # A pruned head has queries of 0, and so no correlation.
    alive = (q != 0).any(-1).any(-1).any(0)
    correlation = _correlation(
        scores[:, alive][..., band], mirrored[:, alive][..., band]
    )
    alpha = None
    if term is not None:
        own = (distance >= 0) & (distance <= reach)
        scores = scores + term.alpha_per_head * mirrored * own
        weights = torch.as_tensor(term.alpha, dtype=torch.float64, device=q.device)
        alpha = weights.expand(q.shape[1])[alive]
    logits = (scores * layer.projection.scale).masked_fill(distance < 0, float("-inf"))
    entropy = torch.special.entr(logits.softmax(-1)).sum(-1)[:, alive]
    relative = entropy / (chosen + 1).log()
    return HeadMetrics(alive.nonzero()[:, 0], entropy, relative, correlation, alpha)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's, along the last dimension."""
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    scale = (a.square().sum(-1) * b.square().sum(-1)).sqrt().clamp_min(1e-12)
    return (a * b).sum(-1) / scale
