"""GPU architectures by the names sm_90 and gfx90a. Imports no torch."""

from __future__ import annotations

import re

# Ray's names (accelerator_type:T4) of NVIDIA's GPUs from before sm_80.
RAY_BEFORE_AMPERE = frozenset({"K80", "P4", "P100", "V100", "T4"})


def has_bf16(architecture: str) -> bool:
    """Whether matrix units take bf16: CUDA from sm_80; AMD MI100 (gfx908), MI200,
    MI300 and later (gfx90a, gfx94x, gfx95x), RDNA3 and later (gfx11, gfx12)."""
    if cuda := re.fullmatch(r"sm_(\d+)\d", architecture):
        return int(cuda[1]) >= 8
    return bool(re.match(r"gfx(908|90a|9[4-9]|1[1-9])", architecture))


def of_capability(text: str) -> str:
    """The architecture of NVIDIA's compute capability: sm_75 of "7.5"; "" of any
    other text."""
    found = re.fullmatch(r"(\d+)\.(\d)", text.strip())
    return f"sm_{found[1]}{found[2]}" if found else ""


def of_target_version(version: int) -> str:
    """The architecture of AMD's gfx_target_version: gfx90a of 90010, which is major,
    minor and stepping with two digits each."""
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"
