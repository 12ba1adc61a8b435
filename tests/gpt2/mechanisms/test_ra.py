"""gpt2/mechanisms/ra: alpha, the band, and the queries kept for decoding."""

from __future__ import annotations

import pytest
import torch

from gpt2.mechanisms.needs import WHOLE_CONTEXT
from gpt2.mechanisms.ra.layer import Reciprocity
from gpt2.model.backends.call import AttentionCall
from gpt2.model.backends.registry import attend
from gpt2.model.context import DecodeCache
from gpt2.model.parts import Heads
from tests.gpt2.helpers import (
    deviation,
    normal,
    tiny_model,
)


def reciprocity(**fields: object) -> Reciprocity:
    return Reciprocity(tiny_model(ra=True, **fields)).double()


def test_alpha_is_a_parameter_only_when_learned() -> None:
    assert [n for n, _ in reciprocity().named_parameters()] == []
    learned = reciprocity(ra_learned_alpha=True, ra_alpha=0.25)
    assert torch.equal(learned.alpha, torch.full((4,), 0.25).double())


@pytest.mark.parametrize("pieces", [[1] * 9, [4, 5], [6, 1, 2]])
@pytest.mark.parametrize("window", [1, 3, WHOLE_CONTEXT])
def test_decoding_needs_the_queries_of_the_last_window_alone(
    window: int, pieces: list[int]
) -> None:
    module = reciprocity(ra_window=window)
    q, k, v = (normal(2, 4, 9, 3, seed=n).detach() for n in range(3))
    term = module.score_term(Heads(q, k, v, q, k))
    whole = attend(AttentionCall(q, k, v, scale=0.5, transposed=term)).output
    whole_cache, at, parts = DecodeCache(1, 9), 0, []
    (cache,) = whole_cache.layers
    for length in pieces:
        rows = slice(at, at + length)
        at += length
        whole_cache.advance(length)
        own = Heads(q, k, v, q[:, :, rows], k[:, :, rows])
        term = module.score_term(own, cache)
        parts.append(
            attend(
                AttentionCall(
                    q[:, :, rows],
                    k[:, :, :at],
                    v[:, :, :at],
                    scale=0.5,
                    transposed=term,
                )
            ).output
        )
        kept = 9 if window == WHOLE_CONTEXT else window + 1
        assert whole_cache.numbers == 2 * 4 * 3 * kept
    assert deviation(torch.cat(parts, 2), whole) < 1e-13
