"""Values passed from block to block, and caches of layers between tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

# From block l to block l+1, always of the same batch: tensors by the names under which
# mechanisms hand them on. Passed as an argument and never stored: state on a module
# would outlive the batch.
BlockContext = Mapping[str, Tensor]


@dataclass(slots=True)
class LayerCache:
    """Tensors one layer keeps for decoding, by name; dimension 1 or 2 is time."""

    tensors: dict[str, Tensor] = field(default_factory=dict)

    def extend(self, name: str, new: Tensor, dim: int) -> Tensor:
        """Append ``new`` along ``dim``, its time, and return the whole."""
        old = self.tensors.get(name)
        whole = new if old is None else torch.cat([old, new], dim=dim)
        self.tensors[name] = whole
        return whole

    def slide(self, name: str, new: Tensor, dim: int, keep: int) -> Tensor:
        """As ``extend``, but keep only the last ``keep`` entries afterwards."""
        whole = self.extend(name, new, dim)
        kept = min(keep, whole.shape[dim])
        last = whole.narrow(dim, whole.shape[dim] - kept, kept)
        self.tensors[name] = last.clone()
        return whole

    def add(self, name: str, new: Tensor) -> Tensor:
        """A running sum of tensors of one shape; returns it without ``new``."""
        old = self.tensors.get(name, torch.zeros_like(new))
        self.tensors[name] = old + new
        return old

    @property
    def numbers(self) -> int:
        """Numbers held, over the batch."""
        return sum(t.numel() for t in self.tensors.values())


@dataclass(slots=True)
class DecodeCache:
    """The decode cache of a model: one ``LayerCache`` a block, and a position."""

    layers: list[LayerCache]
    position: int = 0

    @classmethod
    def empty(cls, n_layer: int) -> DecodeCache:
        return cls([LayerCache() for _ in range(n_layer)])

    @property
    def numbers(self) -> int:
        """Numbers held by all layers, over the batch."""
        return sum(layer.numbers for layer in self.layers)
