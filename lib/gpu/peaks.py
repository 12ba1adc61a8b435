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
    """card: as people call it; pattern: of the whole name as torch gives it; tflops:
    of one device; memory_gb: of one device, as its maker counts; units:
    multiprocessors or compute units where the name alone is not enough."""

    card: str
    pattern: str
    tflops: float
    memory_gb: int
    source: str
    units: int | None = None


MI250 = "AMD CDNA 2 white paper and product page: {} TFLOP/s for both dies, 128 GB"
MI250_NAME = r"AMD Instinct MI250X?( ?/ ?MI250)?"
PEAKS = (
    Peak(
        "W7900",
        r"(AMD )?Radeon Pro W7900( Dual Slot)?",
        122.6,
        48,
        "AMD data sheet: 122.64 TFLOP/s half precision; 96 CU x 512 x 2.495 GHz, "
        "and AMD GPUOpen on the matrix cores of RDNA 4: 512 for RDNA 3 in bf16 too",
    ),
    Peak(
        "RX 7900 XTX",
        r"(AMD )?Radeon RX 7900 XTX",
        122.8,
        24,
        "AMD product page: 122.8 TFLOP/s half precision; 96 CU x 512 x 2.5 GHz",
    ),
    Peak(
        "MI210",
        r"AMD Instinct MI210",
        181.0,
        64,
        "AMD product page: 181.0 TFLOP/s bf16; 104 CU x 1024 x 1.7 GHz",
    ),
    Peak("MI250", MI250_NAME, 362.1 / 2, 64, MI250.format(362.1), units=104),
    Peak("MI250X", MI250_NAME, 383.0 / 2, 64, MI250.format("383.0"), units=110),
    Peak(
        "MI300X",
        r"AMD Instinct MI300X( OAM)?",
        1307.4,
        192,
        "AMD data sheet: 1307.4 TFLOP/s bf16, dense",
    ),
    Peak(
        "A10G",
        r"(NVIDIA )?A10G",
        70.0,
        24,
        "NVIDIA A10G data sheet for AWS, 2022: 70 TFLOP/s bf16 (140 sparse)",
    ),
    Peak(
        "A10",
        r"(NVIDIA )?A10",
        125.0,
        24,
        "NVIDIA A10 data sheet: 125 TFLOP/s bf16 (250 sparse)",
    ),
    Peak(
        "L4",
        r"(NVIDIA )?L4",
        121.0,
        24,
        "NVIDIA L4 data sheet: 242 TFLOP/s sparse, so 121 dense",
    ),
    Peak(
        "A100 40 GB",
        r"(NVIDIA )?A100[- ](SXM4-40GB|PCIE-40GB)",
        312.0,
        40,
        "NVIDIA A100 data sheet: 312 TFLOP/s bf16 (624 sparse)",
    ),
    Peak(
        "A100 80 GB",
        r"(NVIDIA )?A100[- ](SXM4-80GB|80GB PCIe)",
        312.0,
        80,
        "NVIDIA A100 data sheet: 312 TFLOP/s bf16 (624 sparse)",
    ),
    Peak(
        "H100",
        r"(NVIDIA )?H100 80GB HBM3",
        989.4,
        80,
        "NVIDIA H100 architecture paper, SXM5: 989.4 TFLOP/s bf16, dense",
    ),
    Peak(
        "H100 PCIe",
        r"(NVIDIA )?H100 PCIe",
        756.0,
        80,
        "NVIDIA H100 data sheet, PCIe: 1513 TFLOP/s sparse, so 756 dense",
    ),
    Peak(
        "H200",
        r"(NVIDIA )?H200",
        989.4,
        141,
        "NVIDIA H200 data sheet, SXM: 1979 TFLOP/s sparse, the die of the H100",
    ),
    Peak(
        "B200",
        r"(NVIDIA )?B200",
        2250.0,
        180,  # 192 are on the package; what is for sale and what a driver shows is less
        "NVIDIA DGX B200 data sheet: 72 PFLOP/s in FP8, sparse, for 8, so 2250 in "
        "bf16, dense; DGX B200 user guide: 1440 GB for 8",
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
