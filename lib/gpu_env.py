"""The environment that a GPU process needs before it imports torch. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from lib.slots import find_gpus

ALLOCATOR = "PYTORCH_ALLOC_CONF"
# Names of the same setting in older versions of torch, which still reads them.
ALLOCATOR_NAMES = (ALLOCATOR, "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
AOTRITON = "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"
EXPANDABLE = "expandable_segments:True"
AUTO = "auto"


def child_environment(
    environ: Mapping[str, str], alloc_conf: str = AUTO, root: str | Path = "/"
) -> dict[str, str]:
    """What to add to ``environ`` for the GPUs of this machine; {} without any.

    alloc_conf: for torch's allocator; "auto" lets segments grow on NVIDIA, where
    that is supported, "" leaves it to torch. What is set already is left as it is.
    """
    gpus = find_gpus(environ, Path(root))
    if gpus is None:
        return {}
    added = {}
    if alloc_conf == AUTO:
        alloc_conf = EXPANDABLE if gpus.backend == "cuda" else ""
    if alloc_conf and not any(name in environ for name in ALLOCATOR_NAMES):
        added[ALLOCATOR] = alloc_conf
    # Without it SDPA silently falls back to plain maths on these cards.
    needs = gpus.backend == "rocm" and any(map(is_rdna3, gfx_versions(root)))
    if needs and AOTRITON not in environ:
        added[AOTRITON] = "1"
    return added


def gfx_versions(root: str | Path = "/") -> list[str]:
    """Architectures of the AMD GPUs, "gfx1100", as the kernel driver tells them."""
    found = []
    nodes = Path(root) / "sys/class/kfd/kfd/topology/nodes"
    for path in sorted(nodes.glob("*/properties")):
        try:
            told = re.search(r"^gfx_target_version (\d+)$", path.read_text(), re.M)
        except OSError:
            continue
        number = int(told[1]) if told else 0
        if number:  # a CPU's is 0
            major, minor, step = number // 10_000, number // 100 % 100, number % 100
            found.append(f"gfx{major}{minor:x}{step:x}")
    return found


def is_rdna3(architecture: str) -> bool:
    """RDNA3 and RDNA4 (gfx11, gfx12), whose fused attention counts as experimental.
    Instinct cards (gfx9) do without; RDNA2 (gfx103) has none to switch on."""
    return re.match(r"gfx1[12]", architecture) is not None
