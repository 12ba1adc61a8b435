"""Triton kernels with tile sizes chosen from a list (lib/kernels/choices.py).

``TILES`` has one list per kernel and family of GPUs. The registers and the shared
memory of each tile are measured by tests/lib/kernels/test_compiled.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from lib.gpu import device
from lib.kernels import ahead, choices
from lib.kernels.timing import once, seconds

Launch = Callable[..., None]


class Tile(NamedTuple):
    """Rows and columns of a tile, warps of a program, stages of its pipeline."""

    rows: int
    columns: int
    warps: int
    stages: int


# For fp32 products without a matrix unit (precision "ieee"; RDNA has none for fp32):
# the compiler unrolls them, and on NVIDIA takes a minute for a tile of 64 by 64.
EXACT = {
    "nvidia": Tile(32, 32, 4, 2),
    "ampere": Tile(32, 32, 4, 2),
    "cdna": Tile(32, 32, 4, 2),
    "rdna": Tile(16, 16, 8, 1),
}
INTERPRETED = Tile(16, 16, 4, 1)  # no list has one of fewer rows
PASSES_FAILED = "PassManager::run failed"  # of Triton's compiler, as a RuntimeError


def _tiles(*sizes: tuple[int, int, int, int]) -> tuple[Tile, ...]:
    return tuple(Tile(*size) for size in sizes)


# In the order of preference: a process that trains takes the first one that runs where
# none was timed. "nvidia" begins with the fastest for most steps on an H200. RDNA
# (waves of 32, 256 registers per thread, 64 KiB of LDS) needs small tiles of one stage:
# a wave keeps the columns' operands of WMMA in registers, on gfx11 twice, and those
# loaded ahead by a second stage too. CDNA (waves of 64, up to 512 registers, 64 KiB)
# has room for two stages: a third takes all of its LDS. Ampere, Ada and the GeForce
# cards of Blackwell keep operands in registers too, and most have 99 KiB.
TILES: dict[str, dict[str, tuple[Tile, ...]]] = {
    "forward_kernel": {
        "nvidia": _tiles(
            (128, 64, 8, 3), (64, 64, 4, 3), (64, 64, 4, 2), (64, 32, 4, 2)
        ),
        "ampere": _tiles(
            (128, 64, 8, 3), (64, 64, 4, 3), (64, 64, 4, 2), (64, 32, 4, 2)
        ),
        "cdna": _tiles((128, 64, 8, 2), (64, 64, 4, 2), (64, 32, 4, 2)),
        "rdna": _tiles(
            (128, 32, 8, 1), (64, 32, 8, 1), (64, 32, 4, 1), (128, 32, 8, 2)
        ),
    },
    "rows_kernel": {
        "nvidia": _tiles(
            (64, 64, 4, 3), (128, 64, 8, 3), (128, 32, 8, 2), (64, 32, 4, 2)
        ),
        "ampere": _tiles((128, 32, 8, 2), (64, 32, 4, 2)),
        "cdna": _tiles((128, 32, 8, 2), (64, 32, 4, 2), (64, 32, 4, 1)),
        "rdna": _tiles((32, 32, 8, 1), (64, 16, 8, 1), (32, 16, 4, 1)),
    },
    "columns_kernel": {
        "nvidia": _tiles(
            (64, 64, 4, 2), (64, 128, 8, 2), (64, 64, 8, 2), (32, 64, 4, 2)
        ),
        "ampere": _tiles((64, 64, 8, 2), (64, 64, 4, 2), (32, 64, 4, 2)),
        "cdna": _tiles((32, 64, 4, 2), (32, 64, 4, 1), (32, 32, 4, 1)),
        "rdna": _tiles((32, 16, 8, 1), (32, 16, 4, 1), (16, 16, 4, 1)),
    },
    "mean_kernel": {
        "nvidia": _tiles(
            (64, 64, 4, 3), (128, 128, 8, 3), (128, 64, 4, 3), (64, 32, 4, 3)
        ),
        "ampere": _tiles((64, 64, 4, 3), (64, 32, 4, 3)),
        "cdna": _tiles((128, 64, 8, 2), (64, 64, 4, 2), (64, 32, 4, 1)),
        "rdna": _tiles((64, 64, 8, 1), (128, 32, 8, 1), (64, 32, 4, 1)),
    },
}


@cache
def architecture(where: torch.device) -> str:
    """Architecture of a device: "gfx1100", "sm_90"; for other devices their kind."""
    if where.type != "cuda":
        return where.type
    backend = "rocm" if torch.version.hip else "cuda"
    return device.architecture(torch.cuda.get_device_properties(where), backend)


def family(architecture: str) -> str:
    """Name of the architecture's lists in ``TILES``."""
    families = {
        r"gfx9": "cdna",
        r"gfx1": "rdna",
        r"sm_(8|12)": "ampere",
    }
    found = (name for start, name in families.items() if re.match(start, architecture))
    return next(found, "nvidia")


def precision(x: Tensor) -> str:
    """The input precision of tl.dot, which counts for fp32 numbers: "tf32" or "ieee".

    Triton refuses "tf32" on every AMD GPU but gfx942, for bf16 numbers too.
    """
    if architecture(x.device).startswith("gfx"):
        return "ieee"
    exact = torch.get_float32_matmul_precision() == "highest"
    return "ieee" if x.dtype == torch.float32 and exact else "tf32"


def slots(x: Tensor, k: int) -> int:
    """Places for the k largest of a row: a power of 2.

    At least 16 on RDNA, where Triton 3.6 has no layout of WMMA for fewer columns.
    """
    least = 16 if family(architecture(x.device)) == "rdna" else 2
    return max(least, int(triton.next_power_of_2(k)))


def _named(tile: Tile) -> dict[str, int]:
    """A tile as arguments of a kernel and of Triton."""
    return {
        "BM": tile.rows,
        "BN": tile.columns,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


class Tiled:
    """A kernel whose last two arguments, BM and BN, are those of a tile.

    Called as Triton's: ``kernel[grid](*arguments, **flags)``, flags by name.
    """

    def __init__(
        self,
        kernel: Any,
        restore: Sequence[str] = (),
    ) -> None:
        """restore: arguments that the kernel adds to, which a trial has to leave as
        they were."""
        self.kernel = kernel
        self.tiles = TILES[kernel.__name__]
        names = list(kernel.arg_names)
        self.length = names.index("T")
        self.restored = [names.index(name) for name in restore]

    def __getitem__(self, grid: Any) -> Launch:
        return partial(self._launch, grid)

    def options(self, x: Tensor, precision: str) -> tuple[Tile, ...]:
        """The tiles to choose from for products of numbers like x in this precision."""
        if os.environ.get("TRITON_INTERPRET") == "1":
            return (INTERPRETED,)
        kind = family(architecture(x.device))
        exact = x.dtype == torch.float32 and precision == "ieee"
        return (EXACT[kind],) if exact else self.tiles[kind]

    def key(self, arguments: Sequence[Any], flags: dict[str, Any]) -> str:
        """Key of a choice, readable: kernel, type, length, flags."""
        kind = str(arguments[0].dtype).removeprefix("torch.")
        shown = " ".join(f"{name}={flags[name]}" for name in sorted(flags))
        return f"{self.kernel.__name__} {kind} T={arguments[self.length]} {shown}"

    def _launch(self, grid: Any, *arguments: Any, **flags: Any) -> None:
        if ahead.is_collecting():
            self._note(grid, arguments, flags)
            return
        run = partial(self._run, grid, arguments, flags)
        trial = partial(self._trial, run, arguments)
        tile = choices.choose(
            self.key(arguments, flags),
            self.options(arguments[0], flags["P"]),
            partial(trial, seconds),
            lambda tile: trial(once, tile) == 0.0,
        )
        run(Tile(*tile))

    def _note(self, grid: Any, arguments: Sequence[Any], flags: dict[str, Any]) -> None:
        """Have every tile compiled that this launch may get."""
        key = self.key(arguments, flags)
        options = self.options(arguments[0], flags["P"])
        for tile in choices.still_open(key, options):
            named = {**flags, **_named(Tile(*tile))}
            warm_up = partial(self.kernel.warmup, *arguments, grid=grid, **named)
            ahead.note((key, tile), warm_up)

    def _run(
        self, grid: Any, arguments: Sequence[Any], flags: dict[str, Any], tile: Tile
    ) -> None:
        self.kernel[grid](*arguments, **flags, **_named(tile))

    def _trial(
        self,
        run: Callable[[Tile], None],
        arguments: Sequence[Any],
        measure: Callable[[Callable[[], object]], float],
        tile: Tile,
    ) -> float:
        """Seconds of a launch; infinite where the card is too small for the tile or
        Triton cannot compile it."""
        kept: list[tuple[Tensor, Tensor]] = [
            (arguments[i], arguments[i].clone()) for i in self.restored
        ]
        try:
            return measure(lambda: run(tile))
        except (triton.OutOfResources, triton.CompilationError):
            return float("inf")
        except RuntimeError as error:
            if PASSES_FAILED in str(error):
                return float("inf")
            raise
        finally:
            for tensor, before in kept:
                tensor.copy_(before)
