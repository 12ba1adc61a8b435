"""Probe of what torch uses on a device: attention kernels, precision, allocator.

Each kernel is tried, since a build or a card that lacks one falls back to a slow one
silently.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from lib.gpu.device import DTYPES, DeviceInfo
from lib.gpu.env import ALLOCATOR_NAMES, AOTRITON, is_rdna3

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Startup:
    """sdpa: the kernel that torch chooses; usable: all that ran, forward and
    backward. warning: what is wrong and how to fix it, or empty."""

    sdpa: str
    usable: tuple[str, ...]
    float32_products: str  # highest, high (TF32), medium
    autotuning: bool  # of convolutions, by cudnn or MIOpen
    allocator: str
    warning: str

    def rows(self) -> dict[str, str]:
        """For a table at the start of a run."""
        others = [name for name in self.usable if name != self.sdpa]
        return {
            "SDPA": self.sdpa + (f" (also {', '.join(others)})" if others else ""),
            "fp32 products": self.float32_products
            + (" (TF32 or its like)" if self.float32_products != "highest" else ""),
            "autotuning": "on" if self.autotuning else "off",
            "allocator": self.allocator,
        }


def probe(
    info: DeviceInfo, precision: str, head_dim: int, environ: Mapping[str, str]
) -> Startup:
    """Try attention on the device, in the precision of training; read the rest."""
    dtype = DTYPES[precision]
    usable = tuple(name for name in KERNELS if _runs(info, dtype, head_dim, name))
    chosen = _chosen(info, dtype, head_dim)
    named = [environ[name] for name in ALLOCATOR_NAMES if environ.get(name)]
    return Startup(
        sdpa=chosen,
        usable=usable,
        float32_products=torch.get_float32_matmul_precision(),
        autotuning=torch.backends.cudnn.benchmark,
        allocator=named[0] if named and info.is_gpu else "torch's default",
        warning=warning_of(info, chosen, precision),
    )


def warning_of(info: DeviceInfo, chosen: str, precision: str) -> str:
    """Warning and remedy if attention falls back to plain maths on a GPU, or ""."""
    if chosen != "math" or not info.is_gpu:
        return ""
    if precision == "fp32" and info.backend == "rocm":
        remedy = "train in bf16, which the fused kernels take"
    elif info.backend == "rocm" and is_rdna3(info.architecture):
        remedy = f"set {AOTRITON}=1 before the start"
    elif info.backend == "rocm":
        remedy = f"use a torch whose AOTriton knows {info.architecture}"
    else:
        remedy = "use bf16 or fp16 and a head width that is a multiple of 8, up to 256"
    return (
        "attention runs as plain maths (SDPA backend MATH), many times slower and "
        f"with memory that grows with the square of the context: {remedy}"
    )


def _attend(info: DeviceInfo, dtype: torch.dtype, head_dim: int) -> None:
    # ones: no random numbers are drawn
    shape = (1, 2, 128, head_dim)
    q, k, v = (
        torch.ones(shape, dtype=dtype, device=info.device, requires_grad=True)
        for _ in range(3)
    )
    scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()


def _runs(info: DeviceInfo, dtype: torch.dtype, head_dim: int, name: str) -> bool:
    try:
        with warnings.catch_warnings(), sdpa_kernel(KERNELS[name]):
            warnings.simplefilter("ignore")  # torch explains why not, at length
            _attend(info, dtype, head_dim)
    except RuntimeError:
        return False
    return True


def _chosen(info: DeviceInfo, dtype: torch.dtype, head_dim: int) -> str:
    """The choice of torch's own dispatcher; "unknown" if it does not report one."""
    ask = getattr(torch, "_fused_sdp_choice", None)
    if ask is None:
        return "unknown"
    shape = (1, 2, 128, head_dim)
    q = torch.ones(shape, dtype=dtype, device=info.device, requires_grad=True)
    number = int(ask(q, q, q, is_causal=True))
    return next((n for n, b in KERNELS.items() if b.value == number), "unknown")
