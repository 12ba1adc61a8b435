"""Readings of GPUs, NVIDIA and AMD alike.

A source reads the GPUs of one vendor: nvml, amdsmi, or AMD's files in sysfs.
Values that a GPU does not report are None.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from lib.files import text_or_empty

READINGS = (
    "utilisation",  # percent of the time that a kernel ran
    "memory_used_bytes",
    "memory_total_bytes",
    "power_w",
    "temperature_c",
    "clock_mhz",  # of the shader cores
    "memory_clock_mhz",
)
Gpu = dict[str, Any]


class Source:
    """GPUs of one vendor, each read by a handle."""

    name: str
    _gpus: dict[str, Any]  # handles by address

    def read(self) -> list[Gpu]:
        """Index, name, pci and READINGS of each GPU, in order; raises whatever reading
        one raises."""
        return [self._one(n, *gpu) for n, gpu in enumerate(self._gpus.items())]

    def _one(self, index: int, pci: str, gpu: Any) -> Gpu:
        raise NotImplementedError

    def close(self) -> None:
        """Release the library, if there is one."""


class NoSource(RuntimeError):
    """No source is available; the message says why."""


def pci_address(text: str) -> str:
    """Normal form "0000:1b:00.0" of an address such as "00000000:1B:00.0" or "1b:00.0".

    Raises ValueError if the text is not a PCI address.
    """
    pattern = r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})(?:\.([0-7]))?"
    found = re.fullmatch(pattern, text.strip().lower())
    if not found:
        raise ValueError(f"{text!r} is not a PCI address such as 0000:1b:00.0")
    domain = int(found[1] or "0", 16)
    return f"{domain:04x}:{found[2]}:{found[3]}.{found[4] or 0}"


def open_source(
    backend: str, pci: Sequence[str] | None = None, root: str | Path = "/"
) -> Source:
    """The first source that answers; backend is cuda or rocm.

    pci: addresses of the GPUs to watch, in the order of their indices (None: all).
    root: folder of sys/. Raises NoSource with the reason of each source that was tried.
    """
    makers: dict[str, Callable[[], Source]] = {"nvml": lambda: Nvml(pci)}
    if backend == "rocm":
        makers = {
            "amdsmi": lambda: AmdSmi(pci),
            "sysfs": lambda: Sysfs(pci, root),
        }
    reasons = []
    for name, make in makers.items():
        try:
            return make()
        except Exception as error:  # these libraries may raise anything
            reasons.append(f"{name}: {short(error)}")
    raise NoSource("; ".join(reasons))


def short(error: Exception) -> str:
    """An error of a library in one line of at most 120 characters."""
    return f"{type(error).__name__} {error}".strip().splitlines()[0][:120]


def _number(read: Callable[[], Any], unit: float = 1.0) -> float | None:
    """Value of read() times unit; None if it fails or is not a number."""
    try:
        value = float(read())
    except Exception:  # NVMLError_NotSupported, "N/A", a missing file
        return None
    return value * unit if math.isfinite(value) and value >= 0 else None


def _chosen(found: Mapping[str, Any], pci: Sequence[str] | None) -> dict[str, Any]:
    """GPUs with the given addresses, in that order."""
    if pci is None:
        chosen = dict(found)
    else:
        wanted = [pci_address(one) for one in pci]
        chosen = {one: found[one] for one in wanted if one in found}
    if not chosen:
        there = ", ".join(found) or "none"
        raise NoSource(f"no GPU at {', '.join(pci or ['any address'])}: {there} there")
    return chosen


# ---- sources --------------------------------------------------------------------


class Nvml(Source):
    """NVIDIA, with the package nvidia-ml-py (library: pynvml, or a compatible one)."""

    name = "nvml"

    def __init__(self, pci: Sequence[str] | None = None, library: Any = None) -> None:
        self._lib = library or import_module("pynvml")
        self._lib.nvmlInit()
        found = {}
        for index in range(self._lib.nvmlDeviceGetCount()):
            handle = self._lib.nvmlDeviceGetHandleByIndex(index)
            bus = _text(self._lib.nvmlDeviceGetPciInfo(handle).busId)
            found[pci_address(bus)] = handle
        self._gpus = _chosen(found, pci)

    def _one(self, index: int, pci: str, gpu: Any) -> Gpu:
        n = self._lib
        readings: dict[str, Callable[[], Any]] = {
            "utilisation": lambda: n.nvmlDeviceGetUtilizationRates(gpu).gpu,
            "memory_used_bytes": lambda: n.nvmlDeviceGetMemoryInfo(gpu).used,
            "memory_total_bytes": lambda: n.nvmlDeviceGetMemoryInfo(gpu).total,
            "power_w": lambda: n.nvmlDeviceGetPowerUsage(gpu) / 1000,
            "temperature_c": lambda: n.nvmlDeviceGetTemperature(
                gpu, n.NVML_TEMPERATURE_GPU
            ),
            "clock_mhz": lambda: n.nvmlDeviceGetClockInfo(gpu, n.NVML_CLOCK_SM),
            "memory_clock_mhz": lambda: n.nvmlDeviceGetClockInfo(gpu, n.NVML_CLOCK_MEM),
        }
        name = _text(n.nvmlDeviceGetName(gpu))
        numbers = {key: _number(read) for key, read in readings.items()}
        return {"index": index, "name": name, "pci": pci, **numbers}

    def close(self) -> None:
        self._lib.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


class AmdSmi(Source):
    """AMD, with the package amdsmi that comes with ROCm."""

    name = "amdsmi"

    def __init__(self, pci: Sequence[str] | None = None, library: Any = None) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints when it fails
            self._lib = library or import_module("amdsmi")
            self._lib.amdsmi_init()
            handles = self._lib.amdsmi_get_processor_handles()
            found = {
                pci_address(self._lib.amdsmi_get_gpu_device_bdf(handle)): handle
                for handle in handles
            }
        self._gpus = _chosen(found, pci)

    def _one(self, index: int, pci: str, gpu: Any) -> Gpu:
        a, mib = self._lib, float(1 << 20)
        try:
            name = str(a.amdsmi_get_gpu_asic_info(gpu)["market_name"])
        except Exception:  # amdsmi raises KeyError and its own kinds
            name = "AMD GPU"

        def memory(key: str) -> float | None:
            return _number(lambda: a.amdsmi_get_gpu_vram_usage(gpu)[key], mib)

        numbers = {
            "utilisation": _number(
                lambda: a.amdsmi_get_gpu_activity(gpu)["gfx_activity"]
            ),
            "memory_used_bytes": memory("vram_used"),
            "memory_total_bytes": memory("vram_total"),
            "power_w": self._power(gpu),
            "temperature_c": self._temperature(gpu),
            "clock_mhz": self._clock(gpu, "GFX"),
            "memory_clock_mhz": self._clock(gpu, "MEM"),
        }
        return {"index": index, "name": name, "pci": pci, **numbers}

    def _power(self, gpu: Any) -> float | None:
        """Instinct reports the current power, Radeon a short average."""

        def reading(key: str) -> float | None:
            return _number(lambda: self._lib.amdsmi_get_power_info(gpu)[key])

        keys = ("current_socket_power", "average_socket_power", "socket_power")
        return _first(map(reading, keys))

    def _temperature(self, gpu: Any) -> float | None:
        """Temperature at the edge of the die; Instinct cards report only the hot
        spot."""
        a = self._lib

        def at(place: str) -> float | None:
            kind = getattr(a.AmdSmiTemperatureType, place)
            current = a.AmdSmiTemperatureMetric.CURRENT
            return _number(lambda: a.amdsmi_get_temp_metric(gpu, kind, current))

        return _first(map(at, ("EDGE", "HOTSPOT")))

    def _clock(self, gpu: Any, domain: str) -> float | None:
        """The key was renamed from cur_clk to clk."""

        kind = getattr(self._lib.AmdSmiClkType, domain)

        def reading(key: str) -> float | None:
            return _number(lambda: self._lib.amdsmi_get_clock_info(gpu, kind)[key])

        return _first(map(reading, ("clk", "cur_clk")))

    def close(self) -> None:
        self._lib.amdsmi_shut_down()


def _first(numbers: Iterable[float | None]) -> float | None:
    """First number above 0, else 0 if there is one, else None."""
    known = [number for number in numbers if number is not None]
    return next((number for number in known if number), known[0] if known else None)


class Sysfs(Source):
    """AMD, with the files of the amdgpu driver; root is the folder of sys/."""

    name = "sysfs"

    def __init__(
        self, pci: Sequence[str] | None = None, root: str | Path = "/"
    ) -> None:
        found = {}
        for card in sorted(Path(root).glob("sys/class/drm/card*"), key=_card_number):
            device = card / "device"
            if _card_number(card) >= 0 and _words(device / "vendor") == "0x1002":
                found[_slot(device) or f"{_card_number(card):04x}:00:00.0"] = device
        if not found:
            raise NoSource(f"no AMD card in {Path(root) / 'sys/class/drm'}")
        self._gpus = _chosen(found, pci)

    def _one(self, index: int, pci: str, gpu: Any) -> Gpu:
        device: Path = gpu
        if not device.exists():
            raise NoSource(f"{device} is gone")
        sensors = next(iter(sorted(device.glob("hwmon/hwmon*"))), device / "hwmon")
        name = _words(device / "product_name")
        power = ("power1_average", "power1_input")  # in uW; newer cards have the second
        numbers = {
            "utilisation": _in(device / "gpu_busy_percent"),
            "memory_used_bytes": _in(device / "mem_info_vram_used"),
            "memory_total_bytes": _in(device / "mem_info_vram_total"),
            "power_w": _first(_in(sensors / name, 1e-6) for name in power),
            "temperature_c": _in(sensors / "temp1_input", 1e-3),
            "clock_mhz": _in(sensors / "freq1_input", 1e-6),
            "memory_clock_mhz": _in(sensors / "freq2_input", 1e-6),
        }
        name = name or f"AMD GPU {_words(device / 'device')}".strip()
        return {"index": index, "name": name, "pci": pci, **numbers}


def _card_number(card: Path) -> int:
    """-1 for a connector such as card0-DP-1."""
    found = re.fullmatch(r"card(\d+)", card.name)
    return int(found[1]) if found else -1


def _slot(device: Path) -> str:
    found = re.search(r"PCI_SLOT_NAME=(\S+)", _words(device / "uevent"))
    return pci_address(found[1]) if found else ""


def _words(path: Path) -> str:
    return text_or_empty(path).strip()


def _in(path: Path, unit: float = 1.0) -> float | None:
    value = _number(lambda: path.read_text())
    return None if value is None else round(value * unit, 6)
