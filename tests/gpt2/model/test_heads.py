"""A model without some of its heads, written, read back and counted."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gpt2.infer.sampling import Sampling, generate
from gpt2.model.gpt import GPT
from gpt2.model.heads import head_layers, without_heads
from gpt2.plan.budget import budget
from gpt2.train import checkpoint
from gpt2.train.export import load_export, write_export
from tests.gpt2.helpers import deviation, generic, tiny_model, tokens_of
from tests.gpt2.plan.test_budget import flops

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "RA in a band": {"ra": True, "ra_learned_alpha": True},
    "RA everywhere": {"ra": True, "ra_window": 0},
    "RA-CT at the weights": {"ract": True, "ract_placement": "weights"},
    "pooled gate": {"mlp_gate": True, "mlp_gate_pool": "prefix_mean"},
    "all": {"ra": True, "ract": True, "mlp_gate": True, "output_gate": True},
}
KEPT = [[True, False, True, True], [False, False, True, False], [True] * 4]


@torch.no_grad()
def masked(model: GPT) -> None:
    """Zeros for the heads that are not kept."""
    for layer, keep in zip(head_layers(model).values(), KEPT, strict=True):
        for part in layer.slices.values():
            part.of(part.parameter, layer.heads)[:, ~torch.tensor(keep)] = 0.0


@pytest.mark.parametrize("name", MODELS)
def test_without_its_pruned_heads_a_model_computes_the_same(name: str) -> None:
    settings = tiny_model(**MODELS[name])
    model = generic(settings)
    masked(model)
    small = without_heads(model, settings, KEPT).double()
    tokens = tokens_of(settings, 2, settings.model.block_size)
    cache = small.new_cache()
    parts = [small.decode(part, cache) for part in tokens.split([9, 1, 6], 1)]
    with torch.no_grad():
        expected = model.logits(tokens)
        assert deviation(small.logits(tokens), expected) < 1e-12
    assert deviation(torch.cat(parts, 1), expected) < 1e-12


@pytest.mark.parametrize("name", MODELS)
def test_its_costs_are_those_of_the_budget(name: str) -> None:
    settings = tiny_model(**MODELS[name])
    heads = [sum(keep) for keep in KEPT]
    model, costs = GPT(settings, heads), budget(settings, heads)
    assert costs.parameters == sum(p.numel() for p in model.parameters())
    tokens = tokens_of(settings, 2, settings.model.block_size)
    cache = model.new_cache()
    model.decode(tokens, cache)
    held = costs.cache_per_token * tokens.shape[1] + costs.cache_constant
    assert cache.numbers == 2 * held
    if not (settings.mechanisms.ra and settings.mechanisms.ra_window):
        # the reference computes more than a band
        assert flops(settings, tokens, heads=heads) == costs.flops_forward
    assert budget(settings, [4, 4, 4]) == budget(settings)


@pytest.mark.parametrize("heads", [[4, 4], [4, 0, 4], [4, 5, 4]])
def test_impossible_heads_are_refused(heads: list[int]) -> None:
    with pytest.raises(ValueError, match="3 numbers from 1 to 4"):
        GPT(tiny_model(), heads)


def test_heads_that_share_what_they_read_are_refused() -> None:
    for fields in ({"attention": "mla"}, {"cross_token": True}):
        with pytest.raises(ValueError, match="heads cannot be removed"):
            GPT(tiny_model(**fields), [4, 3, 4])


def metadata(settings: Any, **changes: str) -> dict[str, str]:
    return {"settings": json.dumps(settings.to_dict()), **changes}


@pytest.mark.parametrize("heads", [None, (3, 1, 4)])
def test_an_export_is_read_back(tmp_path, heads: tuple[int, ...] | None) -> None:
    settings, path = tiny_model(), tmp_path / "model.safetensors"
    model = GPT(settings, heads)
    write_export(path, model, settings, heads, seed="1")
    found = load_export(path)
    assert found.settings == settings and found.heads == heads
    tokens = tokens_of(settings, 1, 5)
    assert torch.equal(found.model.logits(tokens), model.eval().logits(tokens))
    assert generate(found.model, tokens, 3, Sampling()).shape == (1, 8)


BAD = {
    "lacks 'settings'": {"settings": None},
    "not a list of whole numbers": {"heads": '["4", 4, 4]'},
    "3 numbers from 1 to 4": {"heads": "[4,4]"},
    "of another model": {"heads": "[4,4,2]"},
    "another version": {"settings": "[]"},
    "recursion": {"settings": 9_000 * "["},
    "Expecting value": {"heads": "four"},
}


@pytest.mark.parametrize("reason", BAD)
def test_what_is_no_export_is_refused_by_name(tmp_path, reason: str) -> None:
    settings, path = tiny_model(), tmp_path / "model.safetensors"
    stored = metadata(settings) | BAD[reason]
    stored = {key: value for key, value in stored.items() if value is not None}
    save_file(checkpoint.weights_of(GPT(settings)), path, metadata=stored)
    with pytest.raises(ValueError, match=rf"model\.safetensors is not .*{reason}"):
        load_export(path)


def test_one_changed_bit_of_the_weights_is_noticed(tmp_path) -> None:
    settings, path = tiny_model(), tmp_path / "model.safetensors"
    write_export(path, GPT(settings), settings)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    with pytest.raises(ValueError, match="is damaged: its weights are not those"):
        load_export(path)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x80\x04 a pickle, for all it is worth")
    with pytest.raises(ValueError, match="is not an exported model"):
        load_export(path)
