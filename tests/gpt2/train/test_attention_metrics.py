"""Attention metrics against loops, and that they are what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gpt2.mechanisms.needs import WHOLE_CONTEXT
from gpt2.model.attention import Heads
from gpt2.model.gpt import GPT
from gpt2.model.heads import without_heads
from gpt2.train.attention_metrics import attention_metrics, head_metrics
from tests.gpt2.helpers import generic, tiny_model, tiny_step, tokens_of
from tests.gpt2.model.test_heads import KEPT, masked


def captured(model: GPT, tokens: torch.Tensor) -> list[Heads]:
    found: list[Heads] = []
    hooks = [
        block.attn.projection.register_forward_hook(lambda m, a, out: found.append(out))
        for block in model.layers()
    ]
    model.logits(tokens)
    for hook in hooks:
        hook.remove()
    return found


def by_loops(heads: Heads, scale: float, alpha: float, window: int):
    """Entropy and reciprocity over all rows from 1 on."""
    entropies, correlations = [], []
    batch, count, length, _ = heads.q.shape
    for b in range(batch):
        for h in range(count):
            q, k = heads.q[b, h].detach(), heads.k[b, h].detach()
            pairs = []
            for i in range(1, length):
                logits = []
                for j in range(i + 1):
                    score, mirror = float(q[i] @ k[j]), float(q[j] @ k[i])
                    near = i - j <= window
                    logits.append((score + alpha * mirror * near) * scale)
                    if near and j < i:
                        pairs.append((score, mirror))
                p = np.exp(logits) / np.exp(logits).sum()
                entropies.append(-(p * np.log(p)).sum() / math.log(i + 1))
            correlations.append(np.corrcoef(np.array(pairs).T)[0, 1])
    return np.mean(entropies), np.mean(correlations)


@pytest.mark.parametrize("step", [0, 5, 8, 11, 28])
def test_metrics_equal_loops(step):
    settings = tiny_step(step)
    model = generic(settings, dtype=torch.float32).eval()
    tokens = tokens_of(settings, 2, 9)
    window = settings.mechanisms.ra_window
    found = attention_metrics(model, tokens, 100, window)
    alpha = settings.mechanisms.ra_alpha if settings.mechanisms.ra else 0.0
    for layer, heads in enumerate(captured(model, tokens)):
        scale = model.layers()[layer].attn.projection.scale
        entropy, reciprocity = by_loops(heads, scale, alpha, window)
        assert found["attention_entropy"][layer] == pytest.approx(entropy, abs=1e-4)
        assert found["reciprocity"][layer] == pytest.approx(reciprocity, abs=1e-4)


def test_a_window_of_the_whole_context_takes_all_pairs():
    settings = tiny_step(5, ra_window=WHOLE_CONTEXT)
    model = generic(settings, dtype=torch.float32).eval()
    tokens, alpha = tokens_of(settings, 2, 9), settings.mechanisms.ra_alpha
    found = attention_metrics(model, tokens, 100, WHOLE_CONTEXT)
    for layer, heads in enumerate(captured(model, tokens)):
        scale = model.layers()[layer].attn.projection.scale
        entropy, reciprocity = by_loops(heads, scale, alpha, 9)
        assert found["attention_entropy"][layer] == pytest.approx(entropy, abs=1e-4)
        assert found["reciprocity"][layer] == pytest.approx(reciprocity, abs=1e-4)


@pytest.mark.parametrize(("rows", "chosen"), [(1, [1]), (2, [1, 8]), (4, [1, 3, 6, 8])])
def test_rows_are_spread_from_the_second_to_the_last(rows, chosen):
    settings = tiny_step(5)
    model = generic(settings, dtype=torch.float32).eval()
    tokens = tokens_of(settings, 2, 9)
    few, every = (head_metrics(model, tokens, n, 3) for n in (rows, 8))
    for some, all_rows in zip(few, every, strict=True):
        wanted = all_rows.entropy[..., [i - 1 for i in chosen]]
        torch.testing.assert_close(some.entropy, wanted)
        visible = torch.tensor(chosen).add(1.0).log()
        torch.testing.assert_close(some.relative, wanted / visible)


def test_each_head_has_its_own_numbers():
    settings = tiny_step(30, ra_alpha=0.4)
    model = generic(settings, dtype=torch.float32).eval()
    tokens, window = tokens_of(settings, 2, 9), settings.mechanisms.ra_window
    found = head_metrics(model, tokens, 100, window)
    for layer, heads in enumerate(captured(model, tokens)):
        attention, own = model.layers()[layer].attn, found[layer]
        assert own.alpha.tolist() == attention.reciprocity.alpha.tolist()
        assert own.heads.tolist() == [0, 1, 2, 3]
        for h, alpha in enumerate(own.alpha.tolist()):
            q, k, v = (x[:, h : h + 1] for x in (heads.q, heads.k, heads.v))
            one = Heads(q, k, v, q, k)
            scale = attention.projection.scale
            relative, reciprocity = by_loops(one, scale, alpha, window)
            assert own.relative[:, h].mean() == pytest.approx(relative, abs=1e-4)
            assert own.reciprocity[:, h].mean() == pytest.approx(reciprocity, abs=1e-4)
        visible = torch.arange(2.0, 10.0).log()
        assert own.entropy.numpy() == pytest.approx((own.relative * visible).numpy())


def test_symmetric_scores_are_fully_reciprocal():
    settings = tiny_step(0)
    model = generic(settings, dtype=torch.float32).eval()
    with torch.no_grad():
        for block in model.layers():
            width = block.attn.projection.qkv.weight.shape[0] // 3
            for part in (
                block.attn.projection.qkv.weight,
                block.attn.projection.qkv.bias,
            ):
                part[width : 2 * width] = part[:width]
    found = attention_metrics(model, tokens_of(settings, 2, 12), 4, 5)
    assert found["reciprocity"] == pytest.approx([1.0] * len(model.blocks), abs=1e-4)


def test_no_gradient_is_left_and_sampling_is_close():
    settings = tiny_step(5)
    model = generic(settings, dtype=torch.float32).eval()
    tokens = tokens_of(settings, 4, 16)
    few, all_rows = (attention_metrics(model, tokens, n, 3) for n in (6, 15))
    assert all(p.grad is None for p in model.parameters())
    for name in few:
        assert few[name] != all_rows[name]
        assert few[name] == pytest.approx(all_rows[name], abs=0.3)


def test_pruned_heads_are_not_counted():
    settings = tiny_model(ra=True)
    model = generic(settings)
    before = attention_metrics(model, tokens_of(settings, 2, 9), 100, 2)
    masked(model)
    kept = [
        one.heads.tolist()
        for one in head_metrics(model, tokens_of(settings, 2, 9), 9, 2)
    ]
    assert kept == [[h for h, keep in enumerate(row) if keep] for row in KEPT]
    small = without_heads(model, settings, KEPT)
    found, wanted = (
        attention_metrics(one, tokens_of(settings, 2, 9), 100, 2)
        for one in (model, small)
    )
    for name, layers in wanted.items():
        assert found[name] == pytest.approx(layers, rel=1e-6)
        assert found[name] != pytest.approx(before[name], rel=1e-3)
