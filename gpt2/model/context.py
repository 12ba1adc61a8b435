"""Values passed from block to block, and static caches of layers between tokens.

All memory of a cache is allocated once, for the longest sequence that it may hold, and
written in place: the tensors of one decoded token have the same addresses and shapes as
those of the next, so that a GPU can replay one recording for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

# From block l to block l+1, always of the same batch: tensors by the names under which
# mechanisms hand them on. Passed as an argument and never stored: state on a module
# would outlive the batch.
BlockContext = Mapping[str, Tensor]


@dataclass(slots=True)
class Place:
    """Place in the cache of the S tokens of one call, the same in all layers.

    length: tokens that the cache can hold. Called directly, ``start`` tokens come
    before them, and attention reads ``columns`` = start + S keys. For a recording
    ``row`` [1] holds the position of the one token in the device's memory, and the
    columns after it, which hold nothing yet, have to be masked.
    """

    length: int
    start: int = 0
    columns: int = 0
    row: Tensor | None = None
    made: dict[str, Tensor] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """True if the tokens are the first, so that they attend to each other alone."""
        return self.row is None and self.start == 0

    def write(self, held: Tensor, new: Tensor, dim: int) -> None:
        """Copy ``new`` into its place along ``dim`` of ``held``."""
        if self.row is None:
            held.narrow(dim, self.start, new.shape[dim]).copy_(new)
        else:
            held.index_copy_(dim, self.row, new)

    def shared(self, name: str, make: Callable[[Place], Tensor]) -> Tensor:
        """A tensor for this place, made by the first layer that asks."""
        if name not in self.made:
            self.made[name] = make(self)
        return self.made[name]

    def rows_of(self, table: Tensor) -> Tensor:
        """Rows [S, ...] of a table with one for each position."""
        if self.row is None:
            return table[self.start : self.columns]
        return table.index_select(0, self.row)

    def counts(self, device: torch.device) -> Tensor:
        """Number of tokens up to each of the S, with itself, [S]."""
        if self.row is None:
            return torch.arange(self.start + 1, self.columns + 1, device=device)
        return self.row + 1


@dataclass(slots=True)
class LayerCache:
    """Tensors that one layer keeps for decoding, by name.

    timed: with one entry for each position. states: of the same size at any length.
    made: products of weights, which are not part of a cache's size.
    """

    place: Place
    timed: dict[str, Tensor] = field(default_factory=dict)
    states: dict[str, Tensor] = field(default_factory=dict)
    made: dict[str, Tensor] = field(default_factory=dict)

    def extend(self, name: str, new: Tensor, dim: int) -> Tensor:
        """Write ``new`` along ``dim``, its time; returns what attention reads of it."""
        held = self.room(name, new, dim)
        self.place.write(held, new, dim)
        return held.narrow(dim, 0, self.place.columns)

    def ring(self, name: str, new: Tensor, dim: int, keep: int) -> Tensor:
        """As ``extend``, but only the last ``keep`` entries are held.

        Position p is in slot p modulo ``keep``. Called directly it returns those that
        are left in their order, ``new`` last; for a recording all slots as they are,
        zeros where nothing was written, into which the caller has to write ``new``.
        """
        keep = min(keep, self.place.length)
        held, place = self._held(self.states, name, new, dim, keep), self.place
        if place.row is not None:
            return held
        slots = torch.arange(place.columns, device=new.device) % keep
        before = slots[max(0, place.start - keep + 1) : place.start]
        whole = torch.cat([held.index_select(dim, before), new], dim)
        kept = min(keep, new.shape[dim])
        last = new.narrow(dim, new.shape[dim] - kept, kept)
        held.index_copy_(dim, slots[place.columns - kept :], last)
        return whole

    def room(self, name: str, new: Tensor, dim: int) -> Tensor:
        """As ``extend``, but all memory, into which the caller has to write ``new``."""
        return self._held(self.timed, name, new, dim, self.place.length)

    def add(self, name: str, new: Tensor) -> Tensor:
        """A running sum of tensors of one shape; returns it without ``new``."""
        held = self._held(self.states, name, new, 0, new.shape[0])
        before = held.clone()
        held.add_(new)
        return before

    def once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """A tensor made of weights alone, made at the first call."""
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]

    @staticmethod
    def _held(
        among: dict[str, Tensor], name: str, new: Tensor, dim: int, size: int
    ) -> Tensor:
        """Tensor of that name, at first of zeros: ``new`` with ``size`` along dim."""
        if name not in among:
            shape = list(new.shape)
            shape[dim] = size
            among[name] = new.new_zeros(shape)
        return among[name]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Tensors of the cache, by name."""
        return {**self.timed, **self.states}


class DecodeCache:
    """The decode cache of a model: one ``LayerCache`` per block, and a position.

    It is refused to write more than ``length`` tokens into it: positions in GPT-2 are
    absolute, so that a window that slides would have to compute all again.
    """

    def __init__(self, n_layer: int, length: int) -> None:
        self.place = Place(length)
        self.layers = [LayerCache(self.place) for _ in range(n_layer)]
        self.position = 0
        self.row: Tensor | None = None  # the position, where recordings read it

    @property
    def length(self) -> int:
        return self.place.length

    def check(self, tokens: int) -> None:
        """Raise ValueError if so many tokens more do not fit."""
        if self.position + tokens > self.length:
            raise ValueError(
                f"{self.position + tokens} tokens do not fit a decode cache of "
                f"{self.length}"
            )

    def advance(self, tokens: int) -> None:
        """Place the next tokens, called directly. Raises ValueError if they do not
        fit."""
        self.check(tokens)
        place, columns = self.place, self.position + tokens
        place.made.clear()
        place.start, place.columns, place.row = self.position, columns, None
        self.position = columns
        if self.row is not None:
            self.row.fill_(columns)

    def record(self, columns: int, device: torch.device) -> Tensor:
        """Place the next token by a tensor [1], which is returned, with attention over
        the first ``columns``; the caller advances both."""
        if self.row is None:
            self.row = torch.tensor([self.position], device=device)
        self.place.columns, self.place.row = columns, self.row
        self.place.made.clear()
        return self.row

    def reset(self) -> None:
        """Forget all tokens. What is left in ``timed`` will not be read."""
        self.position = 0
        for layer in self.layers:
            for state in layer.states.values():
                state.zero_()

    def fill(self) -> None:
        """Write any numbers for all tokens, as for a measurement of speed."""
        for layer in self.layers:
            for tensor in layer.tensors.values():
                tensor.normal_()

    @property
    def numbers(self) -> int:
        """Numbers that all layers hold, over the batch."""
        return sum(t.numel() for layer in self.layers for t in layer.tensors.values())

    @property
    def bytes(self) -> int:
        """Memory of all layers, over the batch."""
        return sum(t.nbytes for layer in self.layers for t in layer.tensors.values())
