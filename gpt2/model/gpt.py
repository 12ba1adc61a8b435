"""GPT: embeddings, blocks, tied head, loss, scoring and decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.model.block import RA_MLA_Block
from gpt2.model.context import BlockContext, DecodeCache
from gpt2.model.loss import linear_cross_entropy, summed_score
from gpt2.settings.checks import heads_refusal
from gpt2.settings.schema import Resources, Settings
from lib.gpu.device import to_autocast_type


def settings_of_layers(
    settings: Settings, heads: Sequence[int] | None
) -> list[Settings]:
    """The settings of each layer, with its number of heads.

    Raises ValueError if the numbers cannot be those of such a model.
    """
    layers, most = settings.model.n_layer, settings.model.n_head
    if heads is None:
        return [settings] * layers
    if len(heads) != layers or not all(1 <= number <= most for number in heads):
        raise ValueError(
            f"heads {list(heads)}: there must be {layers} numbers from 1 to {most}"
        )
    if problem := heads_refusal(settings):
        raise ValueError(problem)
    return [settings.replace(n_head=number) for number in heads]


class GPT(nn.Module):
    """GPT-2 (Radford et al. 2019) whose blocks carry the settings' mechanisms.

    heads: how many each block has, where heads were removed; else all have n_head.
    """

    def __init__(self, settings: Settings, heads: Sequence[int] | None = None) -> None:
        super().__init__()
        m = settings.model
        self.block_size = m.block_size
        self.residual_fp32 = settings.optim.residual_fp32
        self.wte = nn.Embedding(settings.vocab_size, m.n_embd)
        self.wpe = nn.Embedding(m.block_size, m.n_embd)
        self.dropout = nn.Dropout(m.dropout)
        own = settings_of_layers(settings, heads)
        pairs = zip(own, [*own[1:], own[-1]], strict=True)
        self.blocks = nn.ModuleList(
            RA_MLA_Block(mine, layer, after)
            for layer, (mine, after) in enumerate(pairs)
        )
        self.ln_f = nn.LayerNorm(m.n_embd, bias=m.bias)

    def use_kernels(self, resources: Resources) -> None:
        """Compute by the backends that are named there from now on."""
        for module in self.modules():
            use = getattr(module, "use_kernels", None)
            if module is not self and use is not None:
                use(resources)

    def layers(self) -> list[RA_MLA_Block]:
        """The blocks with their own type."""
        return [cast(RA_MLA_Block, block) for block in self.blocks]

    def embed(self, tokens: Tensor, position: int | Tensor = 0) -> Tensor:
        """Token plus position embeddings, [B, S] -> [B, S, E].

        position: of the first token, or of the only one as a tensor [1]. Under autocast
        in its type, which the residual stream then keeps.
        """
        if isinstance(position, Tensor):
            where = position
        else:
            end = position + tokens.shape[1]
            assert (
                end <= self.block_size
            ), f"{end} tokens do not fit GPT2_BLOCK_SIZE={self.block_size}"
            where = torch.arange(position, end, device=tokens.device)
        x = self.dropout(self.wte(tokens) + self.wpe(where))
        return x if self.residual_fp32 else to_autocast_type(x)

    def hidden(self, x: Tensor, cache: DecodeCache | None = None) -> Tensor:
        """Embeddings [B, S, E] through all blocks and the last norm."""
        ctx: BlockContext = {}
        for index, block in enumerate(self.blocks):
            layer = None if cache is None else cache.layers[index]
            x, ctx = block(x, ctx=ctx, cache=layer)
        return self.ln_f(x)

    def logits(self, tokens: Tensor) -> Tensor:
        """[B, T] -> [B, T, V]."""
        return F.linear(self.hidden(self.embed(tokens)), self.wte.weight)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats, fp32, over targets [B, T] of tokens [B, T]."""
        return self.loss_of(self.hidden(self.embed(tokens)), targets)

    def loss_of(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The loss of ``forward``, from what ``hidden`` returns."""
        if hidden.is_cuda:  # a GPU's memory is not spent on all logits
            return linear_cross_entropy(hidden, self.wte.weight, targets)
        logits = F.linear(hidden, self.wte.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def score(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy in nats and the count of right predictions, over all
        targets [B, T] of tokens [B, T]."""
        return self.score_of(self.hidden(self.embed(tokens)), targets)

    def score_of(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The result of ``score``, from what ``hidden`` returns."""
        if hidden.is_cuda:
            return summed_score(hidden, self.wte.weight, targets)
        logits = F.linear(hidden, self.wte.weight).float().flatten(0, 1)
        flat = targets.flatten()
        loss = F.cross_entropy(logits, flat, reduction="sum")
        return loss, (logits.argmax(-1) == flat).sum()

    def new_cache(self, length: int | None = None) -> DecodeCache:
        """An empty decode cache for ``length`` tokens, by default the whole context."""
        return DecodeCache(len(self.blocks), length or self.block_size)

    @torch.no_grad()
    def decode(
        self, tokens: Tensor, cache: DecodeCache, *, last_only: bool = False
    ) -> Tensor:
        """Logits [B, S, V] of the next S tokens [B, S] after those in the cache, or
        [B, 1, V] of the last one only.

        Raises ValueError if the tokens do not fit the cache.
        """
        start = cache.position
        cache.advance(tokens.shape[1])
        x = self.hidden(self.embed(tokens, start), cache)
        return F.linear(x[:, -1:] if last_only else x, self.wte.weight)

    @torch.no_grad()
    def decode_at(self, tokens: Tensor, cache: DecodeCache, columns: int) -> Tensor:
        """As ``decode`` for one token [B, 1], with the position in a tensor and
        attention over a fixed number of columns, so that it can be recorded. The caller
        advances the cache."""
        row = cache.record(columns, tokens.device)
        x = self.hidden(self.embed(tokens, row), cache)
        return F.linear(x, self.wte.weight)
