"""gpt2/infer/sampling.py: continuations through the cache, and how tokens are drawn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gpt2.infer.sampling import Sampling, draw, generate
from gpt2.model.gpt import GPT
from tests.gpt2.helpers import generic, tiny_step, tokens_of

GREEDY = Sampling(temperature=0.0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("number", [0, 8, 16, 28])
def test_temperature_zero_continues_by_the_likeliest_token(number: int) -> None:
    settings = tiny_step(number, mlp_gate_mix=0.7, cross_mix=0.5, latent_mix=0.4)
    model, tokens = generic(settings), tokens_of(settings, 2, 3)
    grown = tokens
    for _ in range(9):
        best = model.logits(grown)[:, -1].argmax(-1, keepdim=True)
        grown = torch.cat([grown, best], 1)
    for seed in (0, 1):
        assert torch.equal(generate(model, tokens, 9, GREEDY, seeded(seed)), grown)


def test_sampling_follows_its_generator_and_top_k() -> None:
    settings = tiny_step(0)
    model, tokens = generic(settings), tokens_of(settings, 4, 3)

    def sample(seed: int, top_k: int) -> Tensor:
        return generate(model, tokens, 8, Sampling(top_k=top_k), seeded(seed))

    assert torch.equal(sample(1, 0), sample(1, 0))
    assert not torch.equal(sample(1, 0), sample(2, 0))
    assert torch.equal(sample(1, 1), generate(model, tokens, 8, GREEDY))
    text = sample(3, 4)
    for at in range(3, 11):
        likely = model.logits(text[:, :at])[:, -1].topk(4).indices
        assert (likely == text[:, at : at + 1]).any(-1).all()
    assert torch.equal(sample(1, 10_000), sample(1, 0))


def test_temperature_sharpens() -> None:
    settings = tiny_step(0)
    model, tokens = generic(settings), tokens_of(settings, 64, 2)
    best = model.logits(tokens)[:, -1].argmax(-1)
    hits = []
    for temperature in (0.05, 1.0, 20.0):
        how = Sampling(temperature=temperature)
        text = generate(model, tokens, 1, how, seeded(0))
        hits.append(int((text[:, -1] == best).sum()))
    assert hits[0] > hits[1] > hits[2]


def drawn(weights: list[float], **how: float) -> set[int]:
    logits = torch.tensor(weights).log().expand(400, -1)
    return set(draw(logits, Sampling(**how), seeded(0)).flatten().tolist())


def test_top_p_keeps_the_likeliest_that_reach_it() -> None:
    weights = [0.05, 0.5, 0.15, 0.3]
    assert drawn(weights) == {0, 1, 2, 3}
    assert drawn(weights, top_p=0.9) == {1, 2, 3}
    assert drawn(weights, top_p=0.75) == {1, 3}
    assert drawn(weights, top_p=0.4) == {1}  # never none
    # What top_k leaves counts as the whole.
    assert drawn(weights, top_k=3, top_p=0.6) == {1, 3}
    # A flatter distribution takes more tokens to reach the same probability.
    assert drawn(weights, top_p=0.75, temperature=5.0) == {1, 2, 3}


def test_extreme_options_are_their_limits() -> None:
    weights = [0.05, 0.5, 0.15, 0.3]
    assert (
        drawn(weights, temperature=1e-40) == drawn(weights, temperature=1e-300) == {1}
    )
    assert drawn(weights, temperature=1e300, top_k=2) == {1, 3}
    assert drawn(weights, top_p=1e-300) == {1}


def test_one_seed_gives_similar_models_the_same_noise() -> None:
    logits = torch.randn(500, 50, generator=seeded(1))
    near = logits + 0.01 * torch.randn(500, 50, generator=seeded(2))
    ours, theirs = (draw(x, Sampling(), seeded(3)) for x in (logits, near))
    assert (ours == theirs).float().mean() > 0.9
    assert (ours == draw(near, Sampling(), seeded(4))).float().mean() < 0.5


def test_more_than_the_context_is_refused() -> None:
    settings = tiny_step(0)
    model: GPT = generic(settings)
    assert generate(model, tokens_of(settings, 1, 10), 6, GREEDY).shape == (1, 16)
    with pytest.raises(
        ValueError, match=r"10 \+ 7 tokens do not fit GPT2_BLOCK_SIZE=16"
    ):
        generate(model, tokens_of(settings, 1, 10), 7, GREEDY)
