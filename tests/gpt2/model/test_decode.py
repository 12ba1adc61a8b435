"""Decoding through static caches: every step, token for token, and its memory."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from gpt2.mechanisms.mlp_gate.layer import GatedByMlp
from gpt2.model.context import DecodeCache
from gpt2.model.gpt import GPT
from gpt2.plan.budget import budget
from gpt2.plan.steps import SHIPPED
from gpt2.settings.schema import Settings
from tests.gpt2.helpers import deviation, generic, tiny_model, tiny_step, tokens_of
from tests.interpreted import interpreted

CONTEXT, NEW = 64, 40
WINDOW = 5  # of RA, in tokens
ACTING = {"mlp_gate_mix": 0.7, "cross_mix": 0.5, "latent_mix": 0.4, "ra_alpha": 0.6}
# What no step combines.
MORE = {
    "prefix mean": {"mlp_gate": True, "mlp_gate_pool": "prefix_mean"},
    "rms": {"cross_token": True, "cross_select": "rms", "cross_tau": 0.9},
    "RA on rotary keys": {"attention": "mla_rope", "ra": True, "ra_window": 3},
    "RA on MLA with latent reciprocity": {
        **{"attention": "mla", "ra": True, "ra_window": 3, "latent": "untied"},
        **{"mla_shared_k": True},
    },
    "shared ups": {"attention": "mla", "mla_shared_k": True, "mla_shared_v": True},
    "RA and gates at the weights": {
        **{"ra": True, "ra_window": 3, "ra_learned_alpha": True},
        **{"ract": True, "ract_placement": "weights", "ract_statistic": "rms"},
    },
    "average": {"ract": True, "ract_head_average": True, "ract_statistic": "entropy"},
    "without biases": {"attention": "mla_rope", "bias": False},
}


def step(number: int) -> Settings:
    return tiny_step(number, block_size=CONTEXT, ra_window=WINDOW, **ACTING)


@torch.no_grad()
def greedy(
    model: GPT, tokens: Tensor, cache: DecodeCache, count: int, records: bool
) -> tuple[Tensor, Tensor]:
    """Text with ``count`` tokens more, and the logits that gave them.

    records: as a GPU records it, with the position in a tensor, and attention over more
    columns than are filled, of a number that grows.
    """
    logits = [model.decode(tokens, cache, last_only=True)]
    for _ in range(count - 1):
        tokens = torch.cat([tokens, logits[-1].argmax(-1)], 1)
        if not records:
            logits.append(model.decode(tokens[:, -1:], cache))
            continue
        columns = min(cache.length, (cache.position // 16 + 1) * 16)
        row = cache.record(columns, tokens.device)
        logits.append(model.decode_at(tokens[:, -1:], cache, columns))
        row += 1
        cache.position += 1
    return torch.cat([tokens, logits[-1].argmax(-1)], 1), torch.cat(logits, 1)


@torch.no_grad()
def assert_greedy(model: GPT, text: Tensor, logits: Tensor) -> None:
    """Each token is the likeliest by a pass over all before it."""
    count = logits.shape[1]
    whole = model.logits(text[:, :-1])[:, -count:]
    assert deviation(logits, whole) < 1e-5
    assert torch.equal(text[:, -count:], whole.argmax(-1))


def assert_decodes(settings: Settings, model: GPT) -> None:
    """From a prompt of one token, and from one longer than RA's window, in the same
    memory."""
    cache, costs = model.new_cache(), budget(settings)
    for prompt, records in ((1, True), (WINDOW + 9, False), (WINDOW + 2, True)):
        cache.reset()
        tokens = tokens_of(settings, 2, prompt, seed=prompt)
        count = NEW if prompt != WINDOW + 2 else 4
        assert_greedy(model, *greedy(model, tokens, cache, count, records))
        expected = 2 * (CONTEXT * costs.cache_per_token + costs.cache_constant)
        assert cache.numbers == expected
        assert cache.bytes == 4 * expected, "as the spec says, in fp32"


@pytest.mark.parametrize("number", SHIPPED.steps)
def test_every_step_decodes_the_tokens_of_whole_passes(number: int) -> None:
    settings = step(number)
    assert_decodes(settings, generic(settings, dtype=torch.float32))


@pytest.mark.parametrize("name", MORE)
def test_so_do_other_combinations(name: str) -> None:
    settings = tiny_model(block_size=CONTEXT, **{**ACTING, **MORE[name]})
    assert_decodes(settings, generic(settings, dtype=torch.float32))


@torch.no_grad()
def by_kernels() -> dict[str, float]:
    """Deviation of five recorded tokens from whole passes, by step; at last of a gate
    that the kernel does not know."""
    found = {}
    true = GatedByMlp.head_gate
    for number, gate in ((5, true), (16, true), (17, true), (3, lambda *_: None)):
        settings = step(number)
        model = generic(settings, dtype=torch.float32)
        tokens, cache = tokens_of(settings, 2, 9), model.new_cache()
        with patch.object(GatedByMlp, "head_gate", gate):
            text, logits = greedy(model, tokens, cache, 5, True)
        whole = model.logits(text[:, :-1])[:, -5:]
        found[str(number)] = deviation(logits, whole)
    return found


def test_kernels_decode_what_whole_passes_give() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    found = interpreted(by_kernels)
    assert len(found) == 4 and max(found.values()) < 1e-5, found


@torch.no_grad()
def test_a_longer_window_than_the_first_recording() -> None:
    settings = tiny_model(block_size=CONTEXT, ra=True, ra_window=40, ra_alpha=0.6)
    model = generic(settings, dtype=torch.float32)
    cache, tokens = model.new_cache(), tokens_of(settings, 2, 3)
    assert_greedy(model, *greedy(model, tokens, cache, CONTEXT - 4, True))


@torch.no_grad()
def test_memory_stays_where_it_is_and_what_is_full_refuses() -> None:
    settings = step(16)
    model = generic(settings, dtype=torch.float32)
    cache = model.new_cache(12)
    with pytest.raises(ValueError, match="13 tokens do not fit a decode cache of 12"):
        model.decode(tokens_of(settings, 2, 13), cache)
    assert cache.position == 0 and cache.numbers == 0
    model.decode(tokens_of(settings, 2, 7), cache)
    held = [t for layer in cache.layers for t in layer.tensors.values()]
    places = [t.data_ptr() for t in held]
    model.decode(tokens_of(settings, 2, 5), cache)
    now = [t for layer in cache.layers for t in layer.tensors.values()]
    assert [t.data_ptr() for t in now] == places
    with pytest.raises(ValueError, match="13 tokens do not fit"):
        model.decode(tokens_of(settings, 2, 1), cache)


@torch.no_grad()
def test_a_cache_that_was_reset_remembers_nothing() -> None:
    settings = tiny_model(
        block_size=CONTEXT, ra=True, ra_window=3, **MORE["prefix mean"], **ACTING
    )
    model = generic(settings, dtype=torch.float32)
    used, tokens = model.new_cache(), tokens_of(settings, 2, 9)
    model.decode(tokens, used)
    used.reset()
    found = model.decode(tokens[:, 3:], used)
    assert torch.equal(found, model.decode(tokens[:, 3:], model.new_cache()))


@pytest.mark.parametrize("attention", ["mla", "mla_rope"])
@torch.no_grad()
def test_absorbed_projections_equal_the_plain_ones(attention: str) -> None:
    settings = tiny_model(attention=attention, block_size=CONTEXT)
    model = generic(settings, dtype=torch.float32)
    tokens = tokens_of(settings, 2, CONTEXT)
    whole, cache = model.logits(tokens), model.new_cache()
    parts = [model.decode(tokens[:, at : at + 1], cache) for at in range(CONTEXT)]
    assert deviation(torch.cat(parts, 1), whole) < 1e-5
    assert any("rows" in layer.made for layer in cache.layers)
