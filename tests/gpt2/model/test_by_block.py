"""gpt2/model/by_block.py: one compilation for all layers alike, none left out."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from gpt2.model import by_block
from gpt2.model.by_block import CompiledGPT
from gpt2.model.gpt import GPT
from gpt2.settings.schema import Settings
from lib.gpu import compile_cache
from tests.gpt2.helpers import generic, randomize, tiny_step, tokens_of

LAYERS = 5


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as on a GPU, and then run as it is: code takes a compiler seconds."""

    def whole(function: Any, mode: str | None = None) -> Any:
        compile_cache._configure()
        return torch.compile(function, dynamic=False, fullgraph=True, backend="eager")

    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(by_block, "compiled", whole)


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def slopes(model: GPT, forward: Any, settings: Settings) -> list[torch.Tensor]:
    tokens = tokens_of(settings, 2, settings.model.block_size)
    model.zero_grad(set_to_none=True)
    loss = forward(tokens, tokens.flip(1))
    loss.backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(found) == len(list(model.parameters()))
    return [loss.detach(), *found]


# Embedding and head, and the layers: the first reads no context, the last makes none.
@pytest.mark.parametrize("number, kinds", [(0, 1), (5, 1), (16, 3)])
def test_layers_alike_are_compiled_once(number: int, kinds: int) -> None:
    settings = tiny_step(number, n_layer=LAYERS)
    model = generic(settings).train()
    compiled = CompiledGPT(model)
    found = slopes(model, compiled, settings)
    assert graphs() == 2 + kinds
    for ours, plain in zip(found, slopes(model, model, settings), strict=True):
        assert torch.equal(ours, plain)


def test_no_number_of_kinds_is_too_large() -> None:
    """torch compiles a function for 8 kinds of arguments, then runs it as it is."""
    heads = list(range(1, 11))
    settings = tiny_step(0, n_layer=len(heads), n_head=len(heads))
    model = GPT(settings, heads)
    randomize(model)
    model.double().train()
    found = slopes(model, CompiledGPT(model), settings)
    assert graphs() == 2 + len(heads)
    for ours, plain in zip(found, slopes(model, model, settings), strict=True):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("number, dropout", [(13, 0.0), (16, 0.0), (16, 0.1)])
def test_the_score_is_the_models_by_the_graphs_that_train(
    number: int, dropout: float
) -> None:
    """With the graph of a head more. With dropout there are others for scoring."""
    settings = tiny_step(number, n_layer=LAYERS, dropout=dropout)
    model = generic(settings).train()
    compiled = CompiledGPT(model)
    tokens = tokens_of(settings, 2, settings.model.block_size)
    pair = tokens, tokens.flip(1)
    compiled(*pair).backward()
    trained = graphs()
    model.train(dropout == 0.0)
    with torch.no_grad():
        found = compiled.score(*pair)
    assert (graphs() - trained == 1) == (dropout == 0.0)
    for ours, plain in zip(found, model.eval().score(*pair), strict=True):
        assert torch.equal(ours, plain) and not ours.requires_grad


def test_a_score_keeps_activations_of_one_block_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = tiny_step(16, n_layer=LAYERS)
    compiled = CompiledGPT(generic(settings).train())
    tokens = tokens_of(settings, 2, settings.model.block_size)
    kept: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach()  # a result that it keeps itself would be a cycle
        kept.append(weakref.ref(tensor))
        return tensor

    def counting(*given: Any) -> Any:
        gc.collect()
        alive.append(sum(ref() is not None for ref in kept))
        return block(*given)

    block = compiled._block
    monkeypatch.setattr(compiled, "_block", counting)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        compiled.score(tokens, tokens)
    assert len(alive) == LAYERS and max(alive) < len(kept) / LAYERS
