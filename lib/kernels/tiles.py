"""Triton kernels with tile sizes chosen from a list (lib/kernels/choices.py)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import triton
from torch import Tensor

from lib.kernels import choices
from lib.kernels.timing import once, seconds

Launch = Callable[..., None]


class Tile(NamedTuple):
    """Rows and columns of a tile, warps of a program, stages of its pipeline."""

    rows: int
    columns: int
    warps: int
    stages: int


# For fp32 products that no tensor core computes: they are unrolled, and a tile of 64 by
# 64 takes a compiler a minute.
EXACT = Tile(32, 32, 4, 2)
INTERPRETED = Tile(16, 16, 4, 1)


class Tiled:
    """A kernel whose last two arguments, BM and BN, are those of a tile.

    Called as Triton's: ``kernel[grid](*arguments, **flags)``, flags by name.
    """

    def __init__(
        self,
        kernel: Any,
        *tiles: tuple[int, int, int, int],
        restore: Sequence[str] = (),
    ) -> None:
        """tiles: in the order of preference; restore: arguments that the kernel adds
        to, which a trial has to leave as they were."""
        self.kernel = kernel
        self.tiles = tuple(Tile(*tile) for tile in tiles)
        names = list(kernel.arg_names)
        self.length = names.index("T")
        self.restored = [names.index(name) for name in restore]

    def __getitem__(self, grid: Any) -> Launch:
        return partial(self._launch, grid)

    def options(self, precision: str) -> tuple[Tile, ...]:
        """The tiles to choose from for products of this precision."""
        if os.environ.get("TRITON_INTERPRET") == "1":
            return (INTERPRETED,)
        return (EXACT,) if precision == "ieee" else self.tiles

    def key(self, arguments: Sequence[Any], flags: dict[str, Any]) -> str:
        """What a choice depends on, readable: kernel, type, length, flags."""
        kind = str(arguments[0].dtype).removeprefix("torch.")
        shown = " ".join(f"{name}={flags[name]}" for name in sorted(flags))
        return f"{self.kernel.__name__} {kind} T={arguments[self.length]} {shown}"

    def _launch(self, grid: Any, *arguments: Any, **flags: Any) -> None:
        run = partial(self._run, grid, arguments, flags)
        trial = partial(self._trial, run, arguments)
        tile = choices.choose(
            self.key(arguments, flags),
            self.options(flags["P"]),
            partial(trial, seconds),
            lambda tile: trial(once, tile) == 0.0,
        )
        run(Tile(*tile))

    def _run(
        self, grid: Any, arguments: Sequence[Any], flags: dict[str, Any], tile: Tile
    ) -> None:
        self.kernel[grid](
            *arguments,
            **flags,
            BM=tile.rows,
            BN=tile.columns,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )

    def _trial(
        self,
        run: Callable[[Tile], None],
        arguments: Sequence[Any],
        measure: Callable[[Callable[[], object]], float],
        tile: Tile,
    ) -> float:
        """Seconds of a launch; infinite where the card is too small for the tile."""
        kept: list[tuple[Tensor, Tensor]] = [
            (arguments[i], arguments[i].clone()) for i in self.restored
        ]
        try:
            return measure(lambda: run(tile))
        except (triton.OutOfResources, triton.CompilationError):
            return float("inf")
        finally:
            for tensor, before in kept:
                tensor.copy_(before)
