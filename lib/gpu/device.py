"""Choose and describe a device: CPU, CUDA or ROCm.

torch calls an AMD GPU "cuda" as well; `backend` distinguishes them. What is read from a
GPU goes through functions of recorded properties, which can be tested without one.
"""

from __future__ import annotations

import contextlib
import platform
import random
import re
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from lib import provenance
from lib.files import text_or_empty
from lib.gpu_architectures import has_bf16
from lib.human import counted

NAMES = "auto, cpu, cuda, cuda:N, rocm, rocm:N"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class DeviceError(ValueError):
    """A device was asked for by name and is not there."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Version and devices of this torch, as reported by torch."""

    version: str  # of torch
    cuda: str | None  # CUDA version torch is built for
    hip: str | None  # HIP version torch is built for; then it is a ROCm build
    gpus: int

    @property
    def gpu_backend(self) -> str | None:
        """ "rocm", "cuda", or None for a torch built without either."""
        return "rocm" if self.hip else "cuda" if self.cuda else None


@dataclass(frozen=True, kw_only=True)
class DeviceInfo:
    """One device. memory_bytes is its own; on a CPU the machine's (None: unknown)."""

    backend: str  # cpu, cuda, rocm
    device: str  # as torch names it: cpu, cuda:0
    name: str
    architecture: str  # sm_90, gfx90a, x86_64
    memory_bytes: int | None
    compute_units: int  # multiprocessors, compute units, or usable cores
    driver: str
    torch_version: str
    runtime: str  # CUDA or HIP version
    bf16: bool  # bf16 arithmetic without emulation

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def is_gpu(self) -> bool:
        return self.backend != "cpu"


# ---- choosing -------------------------------------------------------------------


def probe_runtime() -> Runtime:
    """Version and devices of the installed torch."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Runtime(
        version=torch.__version__,
        cuda=torch.version.cuda,
        hip=torch.version.hip,
        gpus=gpus,
    )


def choose_device(name: str, runtime: Runtime) -> tuple[str, int]:
    """(backend, index) for a device name: auto, cpu, cuda, cuda:N, rocm, rocm:N.

    "auto" takes the first GPU, else the CPU. Raises DeviceError for a name that is
    unknown or a device that is not there: never a silent CPU.
    """
    found = re.fullmatch(r"(auto|cpu|cuda|rocm)(?::(\d+))?", name)
    if not found or (found[2] and found[1] in ("auto", "cpu")):
        raise DeviceError(f"{name!r} is not a device; allowed are {NAMES}")
    kind, index = found[1], int(found[2] or 0)
    if kind == "cpu" or (kind == "auto" and not runtime.gpus):
        return "cpu", 0
    if kind not in ("auto", runtime.gpu_backend):
        raise DeviceError(f"device {name!r}: {_wrong_build(kind, runtime)}")
    if index >= runtime.gpus:
        raise DeviceError(f"device {name!r}: {_no_such_gpu(runtime)}")
    assert runtime.gpu_backend is not None
    return runtime.gpu_backend, index


def select_device(name: str = "auto") -> DeviceInfo:
    """Make the device of that name torch's current one. Raises DeviceError as
    choose_device."""
    runtime = probe_runtime()
    backend, index = choose_device(name, runtime)
    if backend == "cpu":
        return cpu_info(runtime)
    torch.cuda.set_device(index)
    properties = torch.cuda.get_device_properties(index)
    return gpu_info(properties, runtime, backend, index, driver_version(backend))


def _wrong_build(kind: str, runtime: Runtime) -> str:
    has = {"rocm": "ROCm", "cuda": "CUDA", None: "the CPU only"}[runtime.gpu_backend]
    other = runtime.gpu_backend or "cpu"
    return (
        f"torch {runtime.version} is built for {has}, not for {kind}; "
        f"use {other} or auto, or install another torch"
    )


def _no_such_gpu(runtime: Runtime) -> str:
    seen = f"torch sees {counted(runtime.gpus, 'GPU')}"
    return (
        f"{seen}, counted from 0; check the driver, the permissions of its device "
        "files and CUDA_VISIBLE_DEVICES / HIP_VISIBLE_DEVICES, or use the cpu"
    )


# ---- describing -----------------------------------------------------------------


def cpu_info(runtime: Runtime) -> DeviceInfo:
    """The machine's processor."""
    cpu = provenance.cpu()
    return DeviceInfo(
        backend="cpu",
        device="cpu",
        name=cpu["model"],
        architecture=platform.machine(),
        memory_bytes=cpu["memory_bytes"],
        compute_units=cpu["cores"],
        driver="-",
        torch_version=runtime.version,
        runtime="-",
        bf16=True,
    )


def gpu_info(
    properties: Any, runtime: Runtime, backend: str, index: int, driver: str
) -> DeviceInfo:
    """From torch.cuda.get_device_properties or an object recorded from it."""
    name = architecture(properties, backend)
    return DeviceInfo(
        backend=backend,
        device=f"cuda:{index}",
        name=properties.name,
        architecture=name,
        memory_bytes=properties.total_memory,
        compute_units=properties.multi_processor_count,
        driver=driver,
        torch_version=runtime.version,
        runtime=(runtime.hip if backend == "rocm" else runtime.cuda) or "unknown",
        bf16=has_bf16(name),
    )


def pci_addresses(info: DeviceInfo, count: int = 1) -> list[str] | None:
    """PCI addresses: of this GPU, or of the first ``count`` that torch sees if above 1.

    None where this torch does not report them.
    """
    indices = range(min(count, torch.cuda.device_count()))
    if count == 1:
        indices = range(info.torch_device.index, info.torch_device.index + 1)
    found = [pci_of(torch.cuda.get_device_properties(index)) for index in indices]
    known = [address for address in found if address]
    return known if len(known) == len(found) else None


def pci_of(properties: Any) -> str | None:
    """PCI address as in 0000:1b:00.0; None from a torch that does not report it."""
    names = ("pci_domain_id", "pci_bus_id", "pci_device_id")
    numbers = [getattr(properties, name, None) for name in names]
    if None in numbers:
        return None
    domain, bus, device = numbers
    return f"{domain:04x}:{bus:02x}:{device:02x}.0"


def architecture(properties: Any, backend: str) -> str:
    """gfx90a from "gfx90a:sramecc+:xnack-" on ROCm; sm_90 from 9.0 on CUDA."""
    if backend == "rocm":
        return str(getattr(properties, "gcnArchName", "unknown")).partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def driver_version(backend: str, root: str | Path = "/") -> str:
    """The kernel driver's version as the system writes it down, else "unknown"."""
    if backend == "rocm":
        text = text_or_empty(Path(root) / "sys/module/amdgpu/version")
        return text.strip() or f"amdgpu of kernel {platform.release()}"
    text = text_or_empty(Path(root) / "proc/driver/nvidia/version")
    found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)", text)
    return found[1] if found else "unknown"


def describe(info: DeviceInfo) -> str:
    """A small table of plain text, two columns."""
    memory = info.memory_bytes
    units = {"cpu": "cores", "cuda": "multiprocessors", "rocm": "compute units"}
    rows = [
        ("device", f"{info.device} ({info.backend})"),
        ("name", info.name),
        (
            "architecture",
            f"{info.architecture}, {info.compute_units} {units[info.backend]}",
        ),
        ("memory", f"{memory / 2**30:.1f} GiB" if memory else "unknown"),
        ("torch", info.torch_version),
        ("bf16", "yes" if info.bf16 else "no"),
    ]
    if info.is_gpu:
        kind = "HIP" if info.backend == "rocm" else "CUDA"
        rows += [("driver", info.driver), (kind, info.runtime)]
    return "\n".join(f"  {name:<14}{value}" for name, value in rows)


# ---- arithmetic -----------------------------------------------------------------


def set_math(info: DeviceInfo, *, tf32: bool = True, benchmark: bool = True) -> None:
    """fp32 products in TF32 (where the GPU has it) and cudnn/MIOpen autotuning.

    On a CPU nothing changes: there runs must agree bit for bit.
    """
    if not info.is_gpu:
        return
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.benchmark = benchmark


def autocast(info: DeviceInfo, precision: str) -> AbstractContextManager[Any]:
    """The context to compute in: precision is fp32 (no autocast), bf16 or fp16.

    Raises ValueError for another name, for bf16 where the GPU would emulate it and
    for fp16 on a CPU.
    """
    if precision == "fp32":
        return contextlib.nullcontext()
    if precision not in DTYPES:
        raise ValueError(f"precision {precision!r}: allowed are fp32, bf16, fp16")
    if precision == "bf16" and not info.bf16:
        raise ValueError(f"{info.name} has no bf16; use fp16 or fp32")
    if precision == "fp16" and not info.is_gpu:
        raise ValueError("fp16 is for GPUs; use bf16 or fp32 on a CPU")
    return torch.autocast(info.torch_device.type, dtype=DTYPES[precision])


def to_autocast_type(x: torch.Tensor) -> torch.Tensor:
    """x in the type that matrix products have here; as it is without autocast."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))


def grad_scaler(info: DeviceInfo, precision: str) -> torch.amp.GradScaler:
    """A loss scaler, active for fp16 alone: bf16 has the range of fp32."""
    return torch.amp.GradScaler(info.torch_device.type, enabled=precision == "fp16")


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (every device). 0 <= seed < 2**32."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed {seed}: allowed are 0 to {2**32 - 1}")
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def random_state(info: DeviceInfo) -> dict[str, torch.Tensor | None]:
    """State of torch's generators, of the CPU and of this GPU (None without one)."""
    gpu = torch.cuda.get_rng_state(info.torch_device) if info.is_gpu else None
    return {"cpu": torch.get_rng_state(), "gpu": gpu}


def set_random_state(
    info: DeviceInfo, state: Mapping[str, torch.Tensor | None]
) -> None:
    """Restore a random_state, also of another kind of device."""
    assert state["cpu"] is not None
    torch.set_rng_state(state["cpu"])
    if info.is_gpu and state["gpu"] is not None:
        torch.cuda.set_rng_state(state["gpu"], info.torch_device)


# ---- time and memory ------------------------------------------------------------


def synchronize(info: DeviceInfo) -> None:
    """Wait until the device has done all it was given; before reading a clock."""
    if info.is_gpu:
        torch.cuda.synchronize(info.torch_device)


def reset_peak_memory(info: DeviceInfo) -> None:
    """Reset peak_memory on a GPU; that of a CPU is always of the whole process."""
    if info.is_gpu:
        torch.cuda.reset_peak_memory_stats(info.torch_device)
        _earlier_peaks.pop(info.torch_device.index, None)


@contextlib.contextmanager
def peak_memory_kept(info: DeviceInfo) -> Iterator[None]:
    """Leave what is allocated inside out of peak_memory, and give it back."""
    if not info.is_gpu:
        yield
        return
    index = info.torch_device.index
    before = peak_memory(info)[0]
    yield
    torch.cuda.empty_cache()
    reset_peak_memory(info)
    _earlier_peaks[index] = before


_earlier_peaks: dict[int, int] = {}


def peak_memory(info: DeviceInfo) -> tuple[int, str]:
    """(bytes, what they measure): torch's allocations on a GPU; on a CPU the largest
    resident set of the process so far, interpreter and libraries included."""
    if info.is_gpu:
        peak = torch.cuda.max_memory_allocated(info.torch_device)
        earlier = _earlier_peaks.get(info.torch_device.index, 0)
        return max(peak, earlier), "allocated by torch"
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak, "max RSS of the process"


def reserved_memory(info: DeviceInfo) -> dict[str, int]:
    """Peak of torch's allocator on a GPU, as an entry of a result."""
    if not info.is_gpu:
        return {}
    return {"reserved_memory_bytes": torch.cuda.max_memory_reserved(info.torch_device)}
