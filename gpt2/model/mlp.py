"""GPT-2's MLP and the places where mechanisms act on its hidden state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.mechanisms import added, module_of
from gpt2.mechanisms.spec import Mechanism
from gpt2.model.backends.call import platform_of_tensor
from gpt2.model.context import BlockContext, LayerCache
from gpt2.model.low_rank_hidden import Factored, Hidden
from gpt2.model.parts import AttentionSide, MlpPart
from gpt2.settings.schema import Resources, Settings


def through_gelu(
    x: Tensor, into: Tensor, bias: Tensor | None, outof: Tensor, backend: str
) -> Tensor:
    """gelu(x into^T + bias) outof^T; x [..., E], into [M, E], outof [R, M]."""
    if backend == "cublaslt":
        from lib.kernels import gelu_op

        return gelu_op.through_gelu(x, into, bias, outof)
    return F.linear(F.gelu(F.linear(x, into, bias), approximate="tanh"), outof)


class MlpResult(NamedTuple):
    """Output [B, S, E] and what the next block reads."""

    output: Tensor
    ctx: BlockContext


def part_classes(settings: Settings) -> Iterator[tuple[Mechanism, str, type[MlpPart]]]:
    """(spec, attribute, class) of what mechanisms add to the MLP, in the order in which
    they act."""
    for spec in added(settings):
        parts = getattr(module_of(spec.name, "layer"), "MLP", {})
        yield from ((spec, name, part) for name, part in parts.items())


def materialises(settings: Settings) -> bool:
    """Whether a mechanism needs the hidden state itself and not products of it."""
    return not all(part.factored for _, _, part in part_classes(settings))


class MLP(nn.Module):
    """GPT-2's MLP with the mechanisms its settings switch on."""

    def __init__(self, settings: Settings, produces: bool) -> None:
        super().__init__()
        m = settings.model
        self.fc = nn.Linear(m.n_embd, m.mlp_width, bias=m.bias)
        self.part_names: list[str] = []
        self.makes: dict[str, str] = {}  # part to name in the context
        for spec, name, part in part_classes(settings):
            if produces or not part.is_producer:
                self.add_module(name, part(settings, produces))
                self.part_names.append(name)
            if produces and spec.hands_on:
                self.makes = {name: spec.hands_on, **self.makes}  # last to act: first
        self.proj = nn.Linear(m.mlp_width, m.n_embd, bias=m.bias)
        self.dropout = nn.Dropout(m.dropout)
        self.materialises = materialises(settings)
        self.use_kernels(settings.resources)

    def use_kernels(self, resources: Resources) -> None:
        """Compute by the backends that are named there from now on."""
        self.backend = resources.mlp_backend
        literal = resources.attention_backend == "reference"
        self.factors = not literal and bool(self.part_names)

    def part(self, name: str) -> MlpPart:
        """Part added by a mechanism, by its attribute."""
        found: MlpPart = getattr(self, name)
        return found

    def forward(
        self,
        x: Tensor,
        *,
        side: AttentionSide,
        cache: LayerCache | None = None,
    ) -> MlpResult:
        """x [B, S, E], normed; ``side`` from this block's attention."""
        hidden = self._hidden(x, cache)
        for name in self.part_names:
            hidden = self.part(name).update(hidden, side, cache)
        ctx = {
            given: self.part(name).make(hidden, cache)
            for name, given in self.makes.items()
        }
        return MlpResult(self.dropout(self._project(hidden)), ctx)

    def _hidden(self, x: Tensor, cache: LayerCache | None) -> Hidden:
        """The hidden state, or what is read of it where that is faster: by cuBLASLt,
        and on a GPU wherever mechanisms read it or add to it."""
        if self.materialises or (cache is not None and cache.place.is_empty):
            return self._made(x)
        if cache is not None:
            return self._decoded(x, cache) if self.factors else self._made(x)
        factors = self.factors and platform_of_tensor(x).triton
        if not (factors or self.backend == "cublaslt"):
            return self._made(x)
        fc, backend = self.fc, self.backend
        return Factored(
            self._readers(),
            lambda rows: through_gelu(x, fc.weight, fc.bias, rows, backend),
        )

    def _made(self, x: Tensor) -> Tensor:
        return F.gelu(self.fc(x), approximate="tanh")

    def _readers(self) -> dict[str, Tensor]:
        """Matrices that read the hidden state, in their order."""
        readers: dict[str, Tensor] = {}
        for name in self.part_names:
            readers |= self.part(name).readers()
        for name in self.makes:
            readers |= self.part(name).making_readers()
        return {**readers, "proj": self.proj.weight}

    def _decoded(self, x: Tensor, cache: LayerCache) -> Factored:
        """The hidden state of few tokens: products of weights are computed once and
        kept, and the output's bias is part of the first of them."""

        def bias() -> Tensor:
            rows = sum(len(matrix) for matrix in self._readers().values())
            own = self.proj.bias
            return torch.cat([own.new_zeros(rows - len(own)), own])

        added = None if self.proj.bias is None else cache.once("read bias", bias)
        hidden = self._made(x)
        return Factored(
            self._readers(), lambda rows: F.linear(hidden, rows, added), cache.once
        )

    def _project(self, hidden: Hidden) -> Tensor:
        if isinstance(hidden, Tensor):
            return self.proj(hidden)
        out, bias = hidden.read("proj"), self.proj.bias
        if bias is None or hidden.once is not None:
            return out
        return out + bias.to(out.dtype)
