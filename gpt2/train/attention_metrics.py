"""Attention metrics, measured on a few rows and without gradient.

Memory is B x H x rows x T, never T x T.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from gpt2.mechanisms.needs import WHOLE_CONTEXT
from gpt2.model.attention import CausalAttention, Heads
from gpt2.model.gpt import GPT


@torch.no_grad()
def attention_metrics(
    model: GPT, tokens: Tensor, rows: int, window: int
) -> dict[str, list[float]]:
    """For each layer, means over batch and heads of tokens [B, T]. Pruned heads, whose
    queries are all zero, are not counted.

    ``attention_entropy``: entropy of the weights over ln(visible keys), of
    ``rows`` evenly spaced rows. ``reciprocity``: correlation over the band's
    pairs j < i of the scores q_i.k_j with their transposed counterparts q_j.k_i.
    """
    found: list[tuple[float, float]] = []
    with ExitStack() as hooks:
        for block in model.layers():
            watch = _watch(block.attn, rows, window, found)
            projection = block.attn.projection
            hooks.enter_context(projection.register_forward_hook(watch))
        model.hidden(model.embed(tokens))
    entropies, correlations = zip(*found, strict=True)
    return {"attention_entropy": list(entropies), "reciprocity": list(correlations)}


def _watch(
    layer: CausalAttention, rows: int, window: int, found: list[tuple[float, float]]
) -> Any:
    def hook(_: nn.Module, __: Any, heads: Heads) -> None:
        found.append(_measure(layer, heads, rows, window))

    return hook


def _measure(
    layer: CausalAttention, heads: Heads, rows: int, window: int
) -> tuple[float, float]:
    heads, term = layer.scored(heads)
    q, k = heads.q.float(), heads.k.float()
    length = q.shape[2]
    chosen = torch.linspace(1, length - 1, min(rows, length - 1), device=q.device)
    chosen = chosen.round().long().unique()
    distance = chosen[:, None] - torch.arange(length, device=q.device)
    scores = q[:, :, chosen] @ k.transpose(-1, -2)
    mirrored = k.expand_as(q)[:, :, chosen] @ q.transpose(-1, -2)
    reach = length if window == WHOLE_CONTEXT else window
    band = (distance > 0) & (distance <= reach)
    alive = (q != 0).any(-1).any(-1).any(0)
    correlation = _correlation(
        scores[:, alive][..., band], mirrored[:, alive][..., band]
    )
    if term is not None:
        own = (distance >= 0) & (distance <= reach)
        scores = scores + term.alpha_per_head * mirrored * own
    logits = (scores * layer.projection.scale).masked_fill(distance < 0, float("-inf"))
    weights = logits.softmax(-1)
    entropy = torch.special.entr(weights).sum(-1) / (chosen + 1).log()
    return entropy[:, alive].mean().item(), correlation


def _correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, along the last dimension, then the mean."""
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    scale = (a.square().sum(-1) * b.square().sum(-1)).sqrt().clamp_min(1e-12)
    return ((a * b).sum(-1) / scale).mean().item()
