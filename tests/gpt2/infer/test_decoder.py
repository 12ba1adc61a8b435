"""gpt2/infer/decoder.py: one memory for many texts; on a GPU a graph per token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gpt2.infer.decoder import Decoder, columns_for
from gpt2.infer.sampling import Sampling, next_tokens
from gpt2.model.gpt import GPT
from gpt2.plan.steps import SHIPPED
from tests.gpt2.helpers import deviation, generic, tiny_model, tiny_step, tokens_of

GREEDY = Sampling(temperature=0.0)


def test_columns_waste_at_most_half() -> None:
    for filled in range(1, 1025):
        columns = columns_for(filled, 1024)
        assert filled <= columns <= max(128, -(-3 * filled // 2))
    assert len({columns_for(filled, 8192) for filled in range(1, 8193)}) == 13
    assert columns_for(1000, 1000) == 1000 and columns_for(3, 7) == 7


@torch.no_grad()
def text(decoder: Decoder, tokens: Tensor) -> Tensor:
    return torch.cat([tokens, *next_tokens(decoder, tokens, GREEDY)], 1)


def test_texts_of_any_batch_and_length_follow_each_other() -> None:
    settings = tiny_step(16, mlp_gate_mix=0.7, cross_mix=0.5)
    model = generic(settings, dtype=torch.float32)
    decoder = Decoder(model, 12)
    for batch, prompt in ((1, 3), (1, 9), (2, 1), (2, 12), (1, 4)):
        tokens = tokens_of(settings, batch, prompt, seed=prompt)
        assert torch.equal(text(decoder, tokens), text(Decoder(model, 12), tokens))
        assert decoder.cache.position == max(prompt, 11)
    assert decoder.why_not == "it is not on a GPU"


def test_a_longer_prompt_than_the_cache_is_refused_and_so_is_a_full_cache() -> None:
    settings = tiny_step(5)
    decoder = Decoder(generic(settings, dtype=torch.float32), 12)
    with pytest.raises(ValueError, match="13 tokens do not fit a decode cache of 12"):
        decoder.begin(tokens_of(settings, 1, 13))
    decoder.begin(tokens_of(settings, 1, 12))
    with pytest.raises(ValueError, match="13 tokens do not fit"):
        decoder.step(tokens_of(settings, 1, 1))


# ---- on a GPU ---------------------------------------------------------------------


@torch.no_grad()
def assert_replays(model: GPT, tokens: Tensor) -> None:
    """Each replayed token is the likeliest by a pass over all before it, with the same
    logits; over several graphs, twice in the same memory."""
    decoder = Decoder(model)
    nearly_full = tokens.repeat(1, 9)[:, : model.block_size - 1]
    for prompt in (nearly_full, tokens, tokens.flip(1)):
        logits, grown = [decoder.begin(prompt)], prompt
        while grown.shape[1] < model.block_size:
            grown = torch.cat([grown, logits[-1].argmax(-1, keepdim=True)], 1)
            logits.append(decoder.step(grown[:, -1:]).clone())
        assert decoder.why_not == "", decoder.why_not
        whole = model.logits(grown)[:, prompt.shape[1] - 1 :]
        assert deviation(torch.stack(logits, 1), whole) < 1e-4
    assert sorted(decoder.graphs) == [128, 192, 200]


@pytest.mark.gpu
@pytest.mark.parametrize("number", SHIPPED.steps)
def test_replays_equal_whole_passes(number: int) -> None:
    settings = tiny_step(
        number, block_size=200, mlp_gate_mix=0.7, cross_mix=0.5, latent_mix=0.4
    )
    model = generic(settings, dtype=torch.float32).cuda()
    assert_replays(model, tokens_of(settings, 2, 30).cuda())


@pytest.mark.gpu
def test_replays_of_a_running_mean_and_a_wide_window_equal_whole_passes() -> None:
    settings = tiny_model(
        **{"block_size": 200, "ra": True, "ra_window": 150, "ra_learned_alpha": True},
        **{"mlp_gate": True, "mlp_gate_pool": "prefix_mean"},
        **{"ract": True, "ract_placement": "weights", "ract_statistic": "rms"},
        **{"cross_token": True, "cross_select": "rms"},
    )
    model = generic(settings, dtype=torch.float32).cuda()
    assert_replays(model, tokens_of(settings, 2, 30).cuda())


@pytest.mark.gpu
def test_in_16_bits_replays_stay_close_to_fp32() -> None:
    for number in (0, 5, 13, 16, 28):
        settings = tiny_step(number, block_size=200, n_embd=64, head_dim=16)
        model = generic(settings, dtype=torch.float32).cuda()
        tokens = tokens_of(settings, 2, 199).cuda()
        with torch.no_grad():
            whole = model.logits(tokens)
            decoder = Decoder(model.to(torch.bfloat16))
            found = [decoder.begin(tokens[:, :140])]
            for at in range(140, 199):
                found.append(decoder.step(tokens[:, at : at + 1]).clone())
        error = (torch.stack(found, 1).float() - whole[:, 139:]).abs().mean()
        assert error < 0.1 * whole.abs().mean(), number
