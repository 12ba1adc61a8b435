"""Token by token decoding through the cache, and how a token is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2.infer.decoder import Decoder
from gpt2.model.gpt import GPT

# Temperatures beyond these act as these do, in fp32: the likeliest token, and any. They
# keep quotients finite.
COLDEST, HOTTEST = 1e-30, 1e30


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Sampling of a token from its logits.

    temperature: divides the logits; 0 takes the likeliest token. top_k: only so many
    of the likeliest (0: all). top_p: only the likeliest that together reach this
    probability (nucleus sampling, arXiv 1904.09751); 1: all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def next_tokens(
    decoder: Decoder,
    tokens: Tensor,
    sampling: Sampling,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """New tokens [B, 1] after ``tokens`` [B, T], until the decoder's cache is full."""
    room = decoder.cache.length - tokens.shape[1]
    logits = decoder.begin(tokens)
    for number in range(room):
        new = draw(logits.float(), sampling, generator)
        yield new
        if number < room - 1:
            logits = decoder.step(new)


def generate(
    model: GPT,
    tokens: Tensor,
    count: int,
    sampling: Sampling,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``tokens`` [B, T] continued by ``count`` tokens.

    Raises ValueError if the result would not fit the context.
    """
    length = tokens.shape[1] + count
    if length > model.block_size:
        raise ValueError(
            f"{tokens.shape[1]} + {count} tokens do not fit "
            f"GPT2_BLOCK_SIZE={model.block_size}"
        )
    new = next_tokens(Decoder(model, length), tokens, sampling, generator)
    return torch.cat([tokens, *new], dim=1)


def draw(
    logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None
) -> Tensor:
    """One token [B, 1] from logits [B, V].

    Models that share a generator's seed also share the noise, so that similar logits
    give the same token: torch.multinomial divides the weights by exponential noise,
    one number per token of the vocabulary, and takes the largest.
    """
    if sampling.temperature == 0.0:
        return logits.argmax(-1, keepdim=True)
    if sampling.top_k:
        least = logits.topk(min(sampling.top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    temperature = min(max(sampling.temperature, COLDEST), HOTTEST)
    weights = (logits / temperature).softmax(-1)
    if sampling.top_p < 1.0:
        ordered, places = weights.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        beyond = before >= sampling.top_p
        beyond[:, 0] = False  # also where top_p is 0 in fp32
        weights = weights.masked_fill(beyond.scatter(-1, places, beyond), 0.0)
    return torch.multinomial(weights, 1, generator=generator)
