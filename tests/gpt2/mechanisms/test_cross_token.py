"""The cross-token MLP: which weights are kept, and its cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gpt2.mechanisms.cross_token.layer import CrossToken
from gpt2.model.context import DecodeCache
from gpt2.model.kept_weights import keep_weights
from gpt2.model.parts import AttentionSide
from tests.gpt2.helpers import (
    deviation,
    normal,
    randomize,
    tiny_model,
)
from tests.gpt2.mechanisms.test_gates import causal_weights


def mean_weights(b: int, t: int) -> Tensor:
    return causal_weights(b, 3, t)[1].detach().mean(1)


@pytest.mark.parametrize("select", ["topk", "rms", "none"])
def test_kept_weights_of_a_row_do_not_depend_on_the_length(select: str) -> None:
    p = mean_weights(2, 13)
    whole = keep_weights(p, select, 3, 0.7, True)
    for t in (1, 2, 6, 12):
        part = keep_weights(p[:, :t, :t], select, 3, 0.7, True)
        assert deviation(part, whole[:, :t, :t]) < 1e-14


def test_what_is_kept() -> None:
    row = torch.tensor([[[0.5, 0.3, 0.15, 0.05]]])
    assert keep_weights(row, "topk", 2, 0.0, False).flatten().tolist() == pytest.approx(
        [0.5, 0.3, 0, 0]
    )
    assert keep_weights(row, "topk", 2, 0.0, True).flatten().tolist() == pytest.approx(
        [0.625, 0.375, 0, 0]
    )
    # rms of the row: 0.302; at tau 0.9 the threshold is 0.272.
    assert keep_weights(row, "rms", 0, 0.9, False).flatten().tolist() == pytest.approx(
        [0.5, 0.3, 0, 0]
    )
    assert torch.equal(keep_weights(row, "none", 1, 9.0, False), row)


def test_nothing_kept_adds_nothing() -> None:
    row = torch.tensor([[[1.0]]], requires_grad=True)
    kept = keep_weights(row, "rms", 0, 2.0, True)
    assert kept.item() == 0
    kept.sum().backward()
    assert row.grad.isfinite().all()


@pytest.mark.parametrize("select", ["topk", "rms", "none"])
def test_cross_token_goes_on_from_its_cache(select: str) -> None:
    settings = tiny_model(cross_token=True, cross_select=select)
    cross = CrossToken(settings, True).double()
    randomize(cross)
    hidden, p = normal(2, 7, 11).detach(), mean_weights(2, 7)
    cache, parts = DecodeCache(1, 7), []
    for a, b in ((0, 3), (3, 4), (4, 7)):
        cache.advance(b - a)
        side = AttentionSide(None, p[:, a:b, :b])
        parts.append(cross.update(hidden[:, a:b], side, cache.layers[0]))
    assert (
        deviation(torch.cat(parts, 1), cross.update(hidden, AttentionSide(None, p)))
        < 1e-14
    )
    assert cache.numbers == 2 * 7 * 2, "the rank, not the width, for each token"
