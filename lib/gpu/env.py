"""Environment variables of a GPU process before it imports torch. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from lib.jobs.slots import amd_nodes, find_gpus
from lib.suggestions import hint

ALLOCATOR = "PYTORCH_ALLOC_CONF"
# Names of the same setting in older versions of torch, which still reads them.
ALLOCATOR_NAMES = (ALLOCATOR, "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
AOTRITON = "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"
EXPANDABLE = "expandable_segments:True"
AUTO = "auto"
_NUMBER, _SHARE, _SWITCH = r"\d+", r"0?\.\d+|1(\.0*)?", "True|False"
_FROM_20 = r"[2-9]\d|[1-9]\d{2,}"
# Names and values that torch 2.13's allocator reads, of NVIDIA and AMD cards.
ALLOCATOR_OPTIONS = {
    "backend": "native|cudaMallocAsync|hipMallocAsync",
    "expandable_segments": _SWITCH,
    "garbage_collection_threshold": _SHARE,
    "graph_capture_record_stream_reuse": _SWITCH,
    "large_segment_size_mb": _NUMBER,
    "max_non_split_rounding_mb": _NUMBER,
    "max_split_size_mb": _FROM_20,
    "per_process_memory_fraction": _SHARE,
    "pinned_max_cached_size_mb": _NUMBER,
    "pinned_max_round_threshold_mb": _NUMBER,
    "pinned_num_register_threads": _NUMBER,
    "pinned_reserve_segment_size_mb": _NUMBER,
    "pinned_use_background_threads": _SWITCH,
    "pinned_use_cuda_host_register": _SWITCH,
    "pinned_use_hip_host_register": _SWITCH,
    "release_lock_on_cudamalloc": _SWITCH,
    "release_lock_on_hipmalloc": _SWITCH,
    "roundup_power2_divisions": r"\d+|\[(\d+:\d+,)*(\d+|>):\d+\]",
}


def check_allocator(text: str) -> None:
    """Raise ValueError for settings that torch's allocator would not accept.

    It is a list like "expandable_segments:True,max_split_size_mb:128"; "auto" or "".
    """
    if text in ("", AUTO):
        return
    for option in re.split(r",(?![^\[]*\])", "".join(text.split())):
        name, colon, value = option.partition(":")
        if not colon:
            raise ValueError(
                f"{option!r} is not an option with a value, such as {EXPANDABLE}"
            )
        if name not in ALLOCATOR_OPTIONS:
            nearest = hint(name, ALLOCATOR_OPTIONS)
            raise ValueError(
                f"torch's allocator has no option {name!r}{nearest}. An option of a "
                f"later torch can be set in the environment, with {ALLOCATOR}"
            )
        if not re.fullmatch(ALLOCATOR_OPTIONS[name], value):
            raise ValueError(f"{name} cannot be {value!r}")


def child_environment(
    environ: Mapping[str, str], alloc_conf: str = AUTO, root: str | Path = "/"
) -> dict[str, str]:
    """Variables to add to ``environ`` for the GPUs of this machine; {} without GPUs.

    alloc_conf: for torch's allocator; "auto" enables expandable segments on NVIDIA,
    where they are supported, "" leaves it to torch. Variables that are set already are
    kept.
    """
    gpus = find_gpus(environ, Path(root))
    if gpus is None:
        return {}
    added = {}
    if alloc_conf == AUTO:
        alloc_conf = EXPANDABLE if gpus.backend == "cuda" else ""
    if alloc_conf and not any(name in environ for name in ALLOCATOR_NAMES):
        added[ALLOCATOR] = alloc_conf
    # Without it SDPA silently falls back to plain matrix products on these cards.
    needs = gpus.backend == "rocm" and any(map(is_rdna3, gfx_versions(root)))
    if needs and AOTRITON not in environ:
        added[AOTRITON] = "1"
    return added


def gfx_versions(root: str | Path = "/") -> list[str]:
    """Architectures of the AMD GPUs ("gfx1100") from the kernel driver."""
    found = []
    for node in amd_nodes(Path(root)):
        number = int(node.get("gfx_target_version", "0"))
        if number:  # a CPU's is 0
            major, minor, step = number // 10_000, number // 100 % 100, number % 100
            found.append(f"gfx{major}{minor:x}{step:x}")
    return found


def is_rdna3(architecture: str) -> bool:
    """RDNA3 and RDNA4 (gfx11, gfx12), whose fused attention counts as experimental.
    Instinct cards (gfx9) do without; RDNA2 (gfx103) has none to switch on."""
    return re.match(r"gfx1[12]", architecture) is not None
