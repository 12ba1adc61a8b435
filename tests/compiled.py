"""Triton kernels compiled for GPUs that are not here, and what each program takes.

``launches`` runs the model of every step on the CPU with Triton's launches recorded
instead of executed, so that a new step is covered without a list by hand. Triton 3.6 to
3.9 have what is used here.
"""

from __future__ import annotations

import re
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from pytest import MonkeyPatch

from lib.kernels.rows import WIDEST_ROW

# Threads of a wave or warp, and the most bytes of LDS or shared memory of a program.
# LDS: getSharedMemorySize in third_party/amd/lib/TritonAMDGPUToLLVM/TargetInfo.cpp of
# Triton. Shared memory: "Technical Specifications per Compute Capability" of the CUDA
# C++ Programming Guide, per thread block.
KIB = 1024
TARGETS = {
    "gfx1100": (32, 64 * KIB),
    "gfx1201": (32, 64 * KIB),
    "gfx90a": (64, 64 * KIB),
    "gfx942": (64, 64 * KIB),
    "sm_80": (32, 163 * KIB),
    "sm_86": (32, 99 * KIB),
    "sm_90": (32, 227 * KIB),
}
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
Attributes = dict[tuple[int], list[list[Any]]]


class Resources(NamedTuple):
    """Of one program: registers of a thread, how many of them are kept in memory (on
    NVIDIA: bytes of stack), and bytes of LDS or shared memory."""

    registers: int
    spilled: int
    shared: int


@dataclass(frozen=True)
class Launch:
    """Target of a compilation, without the tile."""

    module: str
    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[int, ...]  # places of pointers and numbers that 16 divides
    options: tuple[tuple[str, int], ...]  # empty where a tile brings them
    steps: set[int] = field(default_factory=set, compare=False)

    def mechanisms(self) -> int:
        """How many flags are on."""
        return sum(bool(value) for name, value in self.constants if name.isupper())

    def width(self) -> int:
        """Of a head, padded."""
        return int(dict(self.constants)["BD"])

    def is_exact(self) -> bool:
        """Whether its products are of fp32 numbers in fp32."""
        first, flags = self.signature[0][1], dict(self.constants)
        return first == "*fp32" and flags.get("P") == "ieee"

    def label(self) -> str:
        """Kernel, type and the flags that are on or are numbers."""
        shown = [
            name if value is True else f"{name}={value}"
            for name, value in self.constants
            if name.isupper() and value is not None and value is not False
        ]
        steps = ",".join(map(str, sorted(self.steps)))
        return f"{self.kernel} {self.signature[0][1]} {' '.join(shown)} (steps {steps})"


def launch_of(kernel: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Launch:
    """The specialization that Triton makes of these arguments.

    As triton/runtime/jit.py does: None and the number 1 become constants, numbers and
    addresses that 16 divides are marked.
    """
    values = {**dict(zip(kernel.arg_names, arguments, strict=False)), **named}
    signature, constants, divisible = {}, {}, []
    for place, parameter in enumerate(kernel.params):
        name, value = parameter.name, values.get(parameter.name)
        if name in ("BM", "BN") and "num_stages" in named:
            continue
        if parameter.is_constexpr or value is None or type(value) is int and value == 1:
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            divisible.append(place)  # of an allocator's blocks, and rows of whole heads
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, int) and value % 16 == 0:
                divisible.append(place)
    tiled = "num_stages" in named
    options = {k: v for k, v in named.items() if k.startswith("num_")}
    return Launch(
        kernel.fn.__module__,
        kernel.fn.__name__,
        tuple(signature.items()),
        tuple(constants.items()),
        tuple(divisible),
        () if tiled else tuple(options.items()),
    )


# Settings that ask for more than the registered steps do: the longest row to decode,
# and whole matrices of mean weights, as a mechanism reads them that keeps no fixed
# number of a row.
BESIDES = (
    (16, {"block_size": WIDEST_ROW}),
    (4, {"cross_select": "rms"}),
    (16, {"cross_select": "rms"}),
    (16, {"ract_head_average": True}),
)
LENGTH = 1024


def launches(architecture: str) -> tuple[Launch, ...]:
    """Of all steps at the width of GPT-2 124M, forward, backward and a token that is
    decoded, in bf16; of one that has most mechanisms in fp32 too."""
    return _launches("gfx1100" if architecture.startswith("gfx") else "sm_80")


@cache
def _launches(architecture: str) -> tuple[Launch, ...]:
    from gpt2.plan.steps import STEPS

    found: dict[Launch, Launch] = {}
    with _recording(architecture, found) as current:
        for step in STEPS:
            _update_and_token(current, step, torch.bfloat16)
        for step, fields in BESIDES:
            _update_and_token(current, step, torch.bfloat16, **fields)
        _update_and_token(current, BESIDES[-1][0], torch.float32)
    return tuple(found)


def _update_and_token(
    current: list[int], step: int, dtype: torch.dtype, **fields: object
) -> None:
    from gpt2.model.gpt import GPT
    from gpt2.plan.planning import step_settings
    from tests.gpt2.helpers import full_size

    current[:] = [step]
    small = {"n_layer": 2, "tokenizer": "bytes", "attention_backend": "triton"}
    settings = step_settings(full_size().replace(**small, **fields), step)
    model = GPT(settings)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
        logits = model.logits(torch.zeros(1, LENGTH, dtype=torch.int64))
    logits.float().mean().backward()
    token, cache = torch.zeros(1, 1, dtype=torch.int64), model.new_cache()
    model.to(dtype).decode_at(token, cache, cache.length)


@contextmanager
def _recording(architecture: str, found: dict[Launch, Launch]) -> Iterator[list[int]]:
    """Launches go into ``found`` instead of to a GPU; the list holds the step."""
    from triton.runtime.jit import JITFunction

    from gpt2.model.backends import call
    from lib.kernels import choices, tiles

    current: list[int] = []

    def run(self: Any, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
        if callable(grid):
            grid(named)  # callers learn from it how many programs there are
        launch = launch_of(self, arguments, named)
        found.setdefault(launch, launch).steps.update(current)

    with MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", run)
        patch.setattr(choices, "choose", lambda key, options, *_: options[0])
        patch.setattr(tiles, "architecture", lambda device: architecture)
        patch.setitem(call._PLATFORMS, "cpu", call.Platform("cpu", True, False))
        yield current


def tiles_of(launch: Launch, architecture: str) -> tuple[Any, ...]:
    """The tiles that this launch may get there; one None where it has no choice."""
    from lib.kernels import tiles

    if launch.kernel not in tiles.TILES:
        return (None,)
    family = tiles.family(architecture)
    if launch.is_exact():
        return (tiles.EXACT[family],)
    return tiles.TILES[launch.kernel][family]


def compiled(launch: Launch, architecture: str, tile: Any = None) -> Resources:
    """Compile for a GPU that need not be here; ``tile`` of lib/kernels/tiles.py.

    Raises what Triton raises for a kernel that it cannot compile.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(import_module(launch.module), launch.kernel)
    signature, constants = dict(launch.signature), dict(launch.constants)
    options = dict(launch.options)
    if tile is not None:
        constants |= {"BM": tile.rows, "BN": tile.columns}
        signature |= {"BM": "constexpr", "BN": "constexpr"}
        options = {"num_warps": tile.warps, "num_stages": tile.stages}
    amd = architecture.startswith("gfx")
    waves, _ = TARGETS[architecture]
    arch = architecture if amd else int(architecture.removeprefix("sm_"))
    attributes: Attributes = {}
    for place in launch.divisible:
        attributes[(place,)] = [["tt.divisibility", 16]]
        if amd and list(signature.values())[place].startswith("*"):
            attributes[(place,)].append(["tt.pointer_range", 32])  # below 2 GiB
    source = ASTSource(kernel, signature, constants, attributes)
    target = GPUTarget("hip" if amd else "cuda", arch, waves)
    with _own_cache():
        made = triton.compile(source, target=target, options=options)
    if amd:
        return _of_assembly(made.asm["amdgcn"], made.metadata.shared)
    return _of_cubin(made.asm["cubin"], made.metadata.shared)


@contextmanager
def _own_cache() -> Iterator[None]:
    """Nothing that an earlier compilation left is taken, and nothing is left."""
    folder = tempfile.mkdtemp(prefix="kablate-triton-")
    with MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", folder)
        try:
            yield
        finally:
            shutil.rmtree(folder)


def _of_assembly(text: str, shared: int) -> Resources:
    """From the metadata at the end of AMD's assembly."""

    def number(name: str) -> int:
        return sum(int(n) for n in re.findall(rf"\.{name}:\s+(\d+)", text))

    return Resources(number("vgpr_count"), number("vgpr_spill_count"), shared)


def _of_cubin(elf: bytes, shared: int) -> Resources:
    """From the attributes REGCOUNT and FRAME_SIZE in section .nv.info (ELF64)."""
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    sections = [
        struct.unpack_from("<IIQQQQ", elf, table + size * n) for n in range(count)
    ]
    strings = sections[names][4]
    found = {0x2F: 0, 0x11: 0}
    for name, _, _, _, offset, length in sections:
        start = strings + name
        if elf[start : elf.index(b"\0", start)] != b".nv.info":
            continue
        at = offset
        while at < offset + length:
            form, attribute, value = struct.unpack_from("<BBH", elf, at)
            if form == 4 and attribute in found:
                found[attribute] = max(
                    found[attribute], struct.unpack_from("<I", elf, at + 8)[0]
                )
            at += 4 + (value if form == 4 else 0)
    return Resources(found[0x2F], found[0x11], shared)
