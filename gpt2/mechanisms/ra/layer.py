"""Reciprocal attention (RA): the transposed score in a causal band.

s_ij = (q_i.k_j + alpha [i - j <= W] q_j.k_i) / sqrt(D). Causal, because q_j
lies in the past and k_i belongs to the present token.
"""

from __future__ import annotations

import torch
from torch import nn

from gpt2.mechanisms.needs import WHOLE_CONTEXT
from gpt2.model.backends.call import Transposed
from gpt2.model.context import LayerCache
from gpt2.model.parts import AttentionPart, Heads
from gpt2.settings.schema import Settings


class Reciprocity(AttentionPart):
    """Holds alpha, fixed or one learned weight per head, and the band."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        m, x = settings.model, settings.mechanisms
        self.window = x.ra_window
        self.fixed_alpha = x.ra_alpha
        is_whole = x.ra_window == WHOLE_CONTEXT
        self.keep = m.block_size if is_whole else x.ra_window + 1
        learned = torch.full((m.n_head,), x.ra_alpha) if x.ra_learned_alpha else None
        self.alpha = None if learned is None else nn.Parameter(learned)

    def score_term(self, heads: Heads, cache: LayerCache | None = None) -> Transposed:
        q, k = heads.row_q, heads.row_k
        assert q is not None and k is not None
        alpha = self.fixed_alpha if self.alpha is None else self.alpha
        if cache is None:
            return Transposed(k, q, alpha, self.window)
        if self.keep >= cache.place.length:
            return Transposed(k, cache.extend("q", q, 2), alpha, self.window)
        held = cache.ring("q", q, 2, self.keep)
        if cache.place.row is None:
            return Transposed(k, held, alpha, self.window)
        return Transposed(k, q, alpha, self.window, held)


ATTENTION = {"reciprocity": Reciprocity}
