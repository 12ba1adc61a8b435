"""Every tile of every kernel compiled for GPUs that need not be here.

    python -m pytest -m slow -s tests/lib/kernels/test_compiled.py

prints what each tile takes at worst, as docs/hardware.md has it.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
from lib.kernels import tiles
from lib.kernels.causal_op import TILED
from tests.compiled import TARGETS, Launch, Resources, compiled, launches, tiles_of

PROCESSES = 2
DECODING = {"_softmax_kernel", "_kept_sum_kernel"}
# What a tile may keep in memory at most: half of a thread's registers; on NVIDIA, in
# bytes of its stack. The lists for Hopper were timed on an H100 and an H200 instead.
HEAVY = {"rdna": 128, "cdna": 256, "ampere": 4 * 128, "nvidia": math.inf}


def made(launch: Launch, architecture: str, tile: Any) -> Resources | str:
    """Result of compiling it, or the reason why it failed."""
    try:
        return compiled(launch, architecture, tile)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[-200:]}"


def problem(launch: Launch, found: Resources | str, architecture: str) -> str:
    """Why a tile cannot stay in the list; empty if it can.

    Exact fp32 products on NVIDIA may spill: they serve comparisons, not training.
    """
    if isinstance(found, str):
        return found
    _, most = TARGETS[architecture]
    if found.shared > most:
        return f"{found.shared} bytes of shared memory, {most} there are"
    exact = launch.is_exact() and not architecture.startswith("gfx")
    heavy = math.inf if exact else HEAVY[tiles.family(architecture)]
    return f"{found.spilled} spilled" if found.spilled > heavy else ""


def programs(architecture: str) -> list[tuple[Launch, Any]]:
    """Every launch with the first tile of its list, which runs where none was timed,
    and the launches that ask for most with the others: all of all take an hour."""
    found = launches(architecture)
    hard = demanding(found)
    return [
        (launch, tile)
        for launch in found
        for n, tile in enumerate(tiles_of(launch, architecture))
        if n == 0 or launch in hard
    ]


def demanding(found: Sequence[Launch]) -> set[Launch]:
    """Of each kernel, the launches of most mechanisms at once and of widest heads."""
    chosen = set()
    for name in tiles.TILES:
        mine = [x for x in found if x.kernel == name and not x.is_exact()]
        chosen |= {max(mine, key=Launch.mechanisms), max(mine, key=Launch.width)}
    return chosen


def worst(found: list[tuple[Launch, Any, Resources]]) -> Iterator[str]:
    """A row of a table for each kernel and tile."""
    groups: dict[tuple[str, Any], list[Resources]] = {}
    for launch, tile, resources in found:
        groups.setdefault((launch.kernel, tile), []).append(resources)
    for (kernel, tile), each in groups.items():
        size = "-" if tile is None else " ".join(map(str, tile))
        registers, spilled, shared = (
            max(numbers) for numbers in zip(*each, strict=True)
        )
        clean = sum(not resources.spilled for resources in each)
        yield (
            f"| {kernel} | {size} | {registers} | {spilled} | {clean} of {len(each)} "
            f"| {shared / 1024:.0f} |"
        )


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("architecture", TARGETS)
def test_every_tile_compiles_and_fits(architecture: str) -> None:
    asked = programs(architecture)
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=spawned) as pool:
        futures = [pool.submit(made, x, architecture, tile) for x, tile in asked]
        found = [future.result() for future in futures]
    fine = [
        (*a, r) for a, r in zip(asked, found, strict=True) if not isinstance(r, str)
    ]
    print(f"\n{architecture}, {len(asked)} programs", *worst(fine), sep="\n")
    wrong = [
        f"{launch.label()} {tile}: {why}"
        for (launch, tile), resources in zip(asked, found, strict=True)
        if (why := problem(launch, resources, architecture))
    ]
    assert not wrong, "\n".join(wrong)
    assert {x.kernel for x, _ in asked} >= {"_keep_kernel", *DECODING, *tiles.TILES}


def test_each_family_has_a_list_of_its_own() -> None:
    expected = {
        "rdna": ("gfx1100", "gfx1201"),
        "cdna": ("gfx942", "gfx90a"),
        "ampere": ("sm_80", "sm_86", "sm_89", "sm_120"),
        "nvidia": ("sm_90", "sm_100", "cpu"),
    }
    for name, architectures in expected.items():
        assert {tiles.family(x) for x in architectures} == {name}
    for kernel in TILED:
        assert set(kernel.tiles) == set(expected) == set(tiles.EXACT)


@pytest.mark.parametrize(
    ("architecture", "dtype", "expected"),
    [
        ("gfx1100", torch.bfloat16, "ieee"),
        ("gfx90a", torch.float32, "ieee"),
        ("gfx942", torch.float32, "ieee"),
        ("sm_90", torch.bfloat16, "tf32"),
    ],
)
def test_amd_is_never_asked_for_tf32(
    architecture: str,
    dtype: torch.dtype,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiles, "architecture", lambda device: architecture)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x = torch.empty(0, dtype=dtype)
    assert tiles.precision(x) == expected
    for kernel in TILED:
        options = kernel.options(x, tiles.precision(x))
        kind = tiles.family(architecture)
        exact = dtype == torch.float32
        assert options == ((tiles.EXACT[kind],) if exact else kernel.tiles[kind])


def test_rdna_keeps_at_least_16_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for name in ("gfx1100", "gfx942", "sm_90"):
        monkeypatch.setattr(tiles, "architecture", lambda device, name=name: name)
        found[name] = [tiles.slots(torch.empty(0), k) for k in (1, 5, 32)]
    assert found["gfx1100"] == [16, 16, 32]
    assert found["gfx942"] == found["sm_90"] == [2, 8, 32]


@pytest.mark.parametrize("message", [tiles.PASSES_FAILED, "an illegal memory access"])
def test_a_tile_that_triton_cannot_compile_is_passed_over(message: str) -> None:
    def fail(call: object) -> float:
        raise RuntimeError(message)

    def trial() -> float:
        return TILED[0]._trial(lambda tile: None, (), fail, tiles.EXACT["rdna"])

    if message == tiles.PASSES_FAILED:
        assert trial() == float("inf")
    else:
        with pytest.raises(RuntimeError, match=message):
            trial()
