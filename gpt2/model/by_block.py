"""A model compiled in pieces: the embedding, a block, and the head with the loss.

In one graph, layers that differ only in their weights are traced, scheduled and
compiled once each. A block compiled by itself serves all layers like it, so the time of
compilation depends on how many kinds of layers there are and not on their number. What
is lost is the fusion of a block's last sum with the next block's norm, which then reads
the sum from memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2.model.block import RA_MLA_Block
from gpt2.model.context import BlockContext
from gpt2.model.gpt import GPT
from lib.gpu.compile_cache import compiled


def through_block(
    block: RA_MLA_Block, x: Tensor, ctx: BlockContext
) -> tuple[Tensor, BlockContext]:
    """x [B, T, E] and the context of the block before -> both for the next."""
    x, after = block(x, ctx=ctx)
    return x, after


class CompiledGPT:
    """``forward`` and ``score`` of a GPT, in a mode of torch.compile."""

    def __init__(self, model: GPT, mode: str | None = None) -> None:
        self.model = model
        self._embed = compiled(model.embed, mode)
        self._block = compiled(through_block, mode)
        self._loss = compiled(model.loss_of, mode)
        self._score = compiled(model.score_of, mode)

    def __call__(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy, as GPT.forward."""
        loss: Tensor = self._loss(self._trunk(tokens), targets)
        return loss

    @torch.no_grad()
    def score(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As GPT.score."""
        found: tuple[Tensor, Tensor] = self._score(self._trunk(tokens), targets)
        return found

    def _trunk(self, tokens: Tensor) -> Tensor:
        x: Tensor = self._embed(tokens)
        ctx: BlockContext = {}
        for block in self.model.layers():
            x, ctx = self._block(block, x, ctx)
        return x
