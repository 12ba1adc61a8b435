"""Latent reciprocity: its parameters and its chunks per head."""

from __future__ import annotations

from typing import Any

import pytest

from gpt2.mechanisms.latent.layer import LatentExchange, chunk_of
from gpt2.model.gpt import GPT
from gpt2.model.init import init_parameters
from tests.gpt2.helpers import randomize, tiny_model


def exchange_of(kind: str, **fields: Any) -> LatentExchange:
    settings = tiny_model(attention="mla", latent=kind, latent_mix=0.3, **fields)
    model = GPT(settings)
    init_parameters(model, 0)
    exchange = model.get_submodule("blocks.1.mlp.exchange").double()
    assert isinstance(exchange, LatentExchange)
    randomize(exchange)
    return exchange


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
