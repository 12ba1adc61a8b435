"""A model compiled in pieces: the embedding, a block, and the head with the loss.

In one graph, layers that differ only in their weights are traced, scheduled and
compiled once each. A block compiled by itself serves all layers like it, so the time of
compilation depends on how many kinds of layers there are and not on their number.

A piece ends with the norm that the next one begins with. A compiler computes it, and
backward all sums over its input's gradient, in the kernel that adds to the residual
stream; at the start of a piece it would read the stream from memory once more each
time (1% of a micro step of GPT-2 124M on an H200).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gpt2.model.block import RA_MLA_Block
from gpt2.model.context import BlockContext
from gpt2.model.gpt import GPT
from lib.gpu.compile_cache import compiled
from lib.gpu.device import to_autocast_type


class CompiledGPT:
    """``forward`` and ``score`` of a GPT, in a mode of torch.compile."""

    def __init__(self, model: GPT, mode: str | None = None) -> None:
        self.model = model
        self._begin = compiled(self._embed, mode)
        self._block = compiled(through_block, mode)
        self._loss = compiled(model.loss_of, mode)
        self._score = compiled(model.score_of, mode)

    def __call__(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy, as GPT.forward."""
        loss: Tensor = self._loss(self._hidden(tokens), targets)
        return loss

    def score(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As GPT.score, through the pieces that train: compiled without gradients, each
        would be another graph. Only the head is."""
        with torch.enable_grad():
            hidden = self._hidden(tokens, _cut)
        with torch.no_grad():
            found: tuple[Tensor, Tensor] = self._score(hidden.detach(), targets)
        return found

    def _hidden(
        self, tokens: Tensor, between: Callable[[Tensor], Tensor] = lambda x: x
    ) -> Tensor:
        """between: of all that a piece hands to the next one."""
        blocks = self.model.layers()
        after = [*(block.ln_1 for block in blocks[1:]), self.model.ln_f]
        x, normed = map(between, self._begin(tokens))
        ctx: BlockContext = {}
        for block, norm in zip(blocks, after, strict=True):
            x, normed, ctx = self._block(block, norm, x, normed, ctx)
            x, normed = between(x), between(normed)
            ctx = {name: between(value) for name, value in ctx.items()}
        return normed

    def _embed(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = self.model.embed(tokens)
        return x, _normed(self.model.layers()[0].ln_1, x)


def through_block(
    block: RA_MLA_Block, after: nn.Module, x: Tensor, normed: Tensor, ctx: BlockContext
) -> tuple[Tensor, Tensor, BlockContext]:
    """x [B, T, E], its norm and the context of the block before -> all three for the
    next block, ``after`` being the norm that this one begins with."""
    x, ctx = block.from_normed(x, normed, ctx=ctx)
    return x, _normed(after, x), ctx


def _cut(x: Tensor) -> Tensor:
    """x for the same graph, but without what its gradient would need: so of one block
    at a time at most."""
    return x.detach().requires_grad_(x.requires_grad)


def _normed(norm: nn.Module, x: Tensor) -> Tensor:
    # Autocast computes norms in fp32. Products, which alone read them, take 16 bits,
    # and half of what is written.
    return to_autocast_type(norm(x))
