"""Decode a batch token by token: through one cache, on a GPU by recorded graphs.

A GPU computes a token faster than a host can launch its hundreds of kernels. A graph
launches them at once, and reads the position of the token in the GPU's memory. Its
attention spans a fixed number of columns: of a few graphs, each for at most half as
many columns again, so that torch's own matrix products read little more of the cache
than is filled. Kernels with the length as an argument would read no more than that, but
each mechanism would have to have its own.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from gpt2.model.gpt import GPT
from gpt2.train.failures import is_out_of_memory
from lib.gpu.recording import record_graph, stream_restored, warm

FEWEST = 128  # columns of the smallest graph


def columns_for(filled: int, length: int) -> int:
    """Columns that a graph spans for so many filled ones of a cache of ``length``:
    powers of two and numbers halfway between them."""
    power = max(FEWEST, 1 << max(0, (filled - 1).bit_length()))
    halfway = power // 4 * 3
    return min(length, halfway if FEWEST <= halfway and filled <= halfway else power)


def lay_out_for_rows(model: GPT) -> None:
    """Lay out the weights of the blocks as [in, out] in memory; their shapes stay.

    A CPU multiplies a single row faster by them: 28.8 ms per token of GPT-2 124M, not
    32.5 (1 thread of x86-64, torch 2.13).
    """
    for module in model.blocks.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.data.t().contiguous().t()


class Decoder:
    """Continues sequences of a batch, one batch after the other in the same memory.

    why_not: why the tokens are not recorded; "" where they are, or before the first.
    """

    def __init__(self, model: GPT, length: int | None = None) -> None:
        """length: of prompt and new tokens together; by default the whole context."""
        self.model, self.cache = model, model.new_cache(length)
        self.device = model.wte.weight.device
        self.why_not = "" if self.device.type == "cuda" else "it is not on a GPU"
        if self.why_not:
            lay_out_for_rows(model)
        self.tokens: Tensor | None = None
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def begin(self, tokens: Tensor) -> Tensor:
        """Logits [B, V] that follow the prompts [B, T], which replace what was there.

        Raises ValueError if the prompts do not fit the cache.
        """
        if self.tokens is None or len(self.tokens) != len(tokens):
            self.cache = self.model.new_cache(self.cache.length)
            self.tokens, self.graphs = tokens[:, -1:].clone(), {}
        self.cache.reset()
        return self.model.decode(tokens, self.cache, last_only=True)[:, -1]

    def step(self, tokens: Tensor) -> Tensor:
        """Logits [B, V] that follow one more token [B, 1] of each sequence. The next
        call may overwrite them. Raises ValueError if the cache is full."""
        if self.why_not:
            return self.model.decode(tokens, self.cache)[:, -1]
        assert self.tokens is not None, "a step comes after a beginning"
        self.cache.check(1)
        self.tokens.copy_(tokens)
        columns = columns_for(self.cache.position + 1, self.cache.length)
        if columns not in self.graphs and not self._record(columns):
            return self.model.decode(tokens, self.cache)[:, -1]
        graph, logits = self.graphs[columns]
        graph.replay()
        self.cache.position += 1
        return logits

    def _record(self, columns: int) -> bool:
        """Record a graph; False, with a warning, if that cannot be done."""
        kept = [self.cache.record(columns, self.device)]
        kept += [t for layer in self.cache.layers for t in layer.states.values()]
        before = [tensor.clone() for tensor in kept]
        pool = next((graph.pool() for graph, _ in self.graphs.values()), None)
        try:
            with stream_restored(self.device):
                warm(lambda: self._token(columns), self.device)
                recorded = record_graph(lambda: self._next_token(columns), pool)
            self.graphs[columns] = recorded
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self.why_not = str(error).splitlines()[0]
            warnings.warn(
                f"tokens are decoded without a graph: {self.why_not}", stacklevel=2
            )
        for tensor, old in zip(kept, before, strict=True):
            tensor.copy_(old)  # the passes before the recording have changed them
        return not self.why_not

    def _token(self, columns: int) -> Tensor:
        assert self.tokens is not None
        return self.model.decode_at(self.tokens, self.cache, columns)[:, -1]

    def _next_token(self, columns: int) -> Tensor:
        """As ``_token``, and the position advances: only in a recording, since passes
        before it could lead beyond the end of the cache."""
        logits, row = self._token(columns), self.cache.row
        assert row is not None
        row += 1
        return logits
