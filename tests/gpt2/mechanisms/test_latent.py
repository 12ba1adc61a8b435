"""gpt2/mechanisms/latent against its formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2.mechanisms.latent.layer import LatentExchange, chunk_of
from gpt2.model.gpt import GPT
from gpt2.model.init import init_parameters
from gpt2.model.parts import AttentionSide
from tests.gpt2.helpers import assert_agree, formula_of, normal, randomize, tiny_model


def exchange_of(kind: str, **fields: Any) -> LatentExchange:
    settings = tiny_model(attention="mla", latent=kind, latent_mix=0.3, **fields)
    model = GPT(settings)
    init_parameters(model, 0)
    exchange = model.get_submodule("blocks.1.mlp.exchange").double()
    assert isinstance(exchange, LatentExchange)
    randomize(exchange)
    return exchange


@pytest.mark.parametrize("heads", [1, 3, 4])
@pytest.mark.parametrize("kind", ["tied_transpose", "untied", "per_head_scalar"])
def test_latent_exchange_equals_its_formula(kind: str, heads: int) -> None:
    exchange = exchange_of(kind, n_head=heads)
    hidden, latent = normal(3, 7, 11), normal(3, 7, 6, seed=1)
    ours = exchange.update(hidden, AttentionSide(latent, None))
    assert isinstance(ours, Tensor)
    settings = tiny_model(attention="mla", latent=kind, latent_mix=0.3, n_head=heads)
    formula = formula_of("latent", settings, exchange, "mlp.exchange")
    pairs = zip(hidden, latent, strict=True)
    theirs = torch.stack([formula.hidden(h, h, own) for h, own in pairs])
    given = torch.stack([formula.made(h) for h in theirs])
    leaves = [hidden, latent, *exchange.parameters()]
    assert_agree([ours, exchange.make(ours)], leaves, [theirs, given], leaves, 1e-12)


def test_the_tied_matrix_is_one_parameter_and_the_untied_are_two() -> None:
    names = {
        kind: [name for name, _ in exchange_of(kind).named_parameters()]
        for kind in ("tied_transpose", "untied", "per_head_scalar")
    }
    assert names == {
        "tied_transpose": ["up.weight"],
        "untied": ["up.weight", "down.weight"],
        "per_head_scalar": ["up_scale", "down_scale"],
    }


@pytest.mark.parametrize(("width", "heads"), [(6, 4), (128, 12), (12, 12), (7, 1)])
def test_chunks_are_contiguous_and_even(width: int, heads: int) -> None:
    chunks = chunk_of(width, heads)
    assert len(chunks) == width
    assert chunks == sorted(chunks)
    sizes = [chunks.count(head) for head in range(heads)]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1
