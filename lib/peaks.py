"""Dense peak rates of GPUs for bf16 and fp16 products, for MFU. Torch-free.

Per device as torch counts devices: an MI250 is two of them. Makers like to print the
rate with 2:4 sparsity, twice the dense one; here all are dense. A card that is not
listed has no peak: an MFU against a guess would be worth nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Peak:
    """pattern: of the whole name as torch gives it; units: multiprocessors or
    compute units where the name alone is not enough."""

    pattern: str
    tflops: float
    source: str
    units: int | None = None


MI250 = "AMD Instinct MI250, MI250X product pages: {} TFLOP/s for both dies"
MI250_NAME = r"AMD Instinct MI250X?( ?/ ?MI250)?"
PEAKS = (
    Peak(
        r"(AMD )?Radeon Pro W7900( Dual Slot)?",
        122.6,
        "AMD Radeon PRO W7900 data sheet: 122.64 TFLOP/s half precision",
    ),
    Peak(
        r"(AMD )?Radeon RX 7900 XTX",
        122.8,
        "AMD Radeon RX 7900 XTX product page: 122.8 TFLOP/s FP16 (matrix)",
    ),
    Peak(MI250_NAME, 362.1 / 2, MI250.format(362.1), units=104),
    Peak(MI250_NAME, 383.0 / 2, MI250.format("383.0"), units=110),
    Peak(
        r"AMD Instinct MI300X( OAM)?",
        1307.4,
        "AMD Instinct MI300X data sheet: 1307.4 TFLOP/s bf16, dense",
    ),
    Peak(
        r"(NVIDIA )?A10G",
        70.0,
        "NVIDIA A10G data sheet for AWS: 70 TFLOP/s bf16 (140 sparse)",
    ),
    Peak(r"(NVIDIA )?L4", 121.0, "NVIDIA L4 data sheet: 242 TFLOP/s sparse"),
    Peak(
        r"(NVIDIA )?A100[- ](SXM4-40GB|SXM4-80GB|PCIE-40GB|80GB PCIe)",
        312.0,
        "NVIDIA A100 data sheet: 312 TFLOP/s bf16 (624 sparse)",
    ),
    Peak(
        r"(NVIDIA )?H100 80GB HBM3",
        989.4,
        "NVIDIA H100 architecture paper, SXM5: 989.4 TFLOP/s bf16, dense",
    ),
    Peak(
        r"(NVIDIA )?H100 PCIe",
        756.0,
        "NVIDIA H100 architecture paper, PCIe: 756 TFLOP/s bf16, dense",
    ),
    Peak(
        r"(NVIDIA )?H200",
        989.4,
        "NVIDIA H200 data sheet, SXM: 1979 TFLOP/s sparse, the die of the H100",
    ),
    Peak(
        r"(NVIDIA )?B200",
        2250.0,
        "NVIDIA DGX B200 data sheet: 36 PFLOP/s sparse for 8, so 2.25 dense each",
    ),
)


def peak_of(name: str, units: int | None = None) -> Peak | None:
    """The entry of a device by its name (and units); None if it is not listed."""
    for peak in PEAKS:
        same_units = peak.units is None or peak.units == units
        if same_units and re.fullmatch(peak.pattern, name.strip(), re.IGNORECASE):
            return peak
    return None


def peak_flops(name: str, units: int | None, precision: str) -> float | None:
    """FLOP/s of a device in bf16 or fp16; None where unknown, and for fp32."""
    peak = peak_of(name, units)
    if peak is None or precision not in ("bf16", "fp16"):
        return None
    return peak.tflops * 1e12
