"""Dense peak rates of GPUs for bf16 and fp16 products, for MFU. Torch-free.

Per device as torch counts devices: an MI250 is two of them. Makers like to print the
rate with 2:4 sparsity, twice the dense one; here all are dense. A card that is not
listed has no peak: an MFU against a guess would mean nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Peak:
    """card: its usual name; pattern: of the whole name as torch gives it; tflops:
    of one device; memory_gb: of one device, as its maker counts; units:
    multiprocessors or compute units where the name alone is not enough."""

    card: str
    pattern: str
    tflops: float
    memory_gb: int
    source: str
    units: int | None = None


# Card, TFLOP/s, GB, units (-: any), pattern; then the source. A B200 has 192 GB on the
# package; what is for sale and what a driver shows is less.
_TABLE = r"""
W7900         122.6   48    -  (AMD )?Radeon Pro W7900( Dual Slot)?
    AMD data sheet: 122.64 TFLOP/s half precision; 96 CU x 512 x 2.495 GHz, and AMD
    GPUOpen on the matrix cores of RDNA 4: 512 for RDNA 3 in bf16 too
RX 7900 XTX   122.8   24    -  (AMD )?Radeon RX 7900 XTX
    AMD product page: 122.8 TFLOP/s half precision; 96 CU x 512 x 2.5 GHz
MI210         181.0   64    -  AMD Instinct MI210
    AMD product page: 181.0 TFLOP/s bf16; 104 CU x 1024 x 1.7 GHz
MI250        181.05   64  104  AMD Instinct MI250X?( ?/ ?MI250)?
    AMD CDNA 2 white paper and product page: 362.1 TFLOP/s for both dies, 128 GB
MI250X        191.5   64  110  AMD Instinct MI250X?( ?/ ?MI250)?
    AMD CDNA 2 white paper and product page: 383.0 TFLOP/s for both dies, 128 GB
MI300X       1307.4  192    -  AMD Instinct MI300X( OAM)?
    AMD data sheet: 1307.4 TFLOP/s bf16, dense
A10G           70.0   24    -  (NVIDIA )?A10G
    NVIDIA A10G data sheet for AWS, 2022: 70 TFLOP/s bf16 (140 sparse)
A10           125.0   24    -  (NVIDIA )?A10
    NVIDIA A10 data sheet: 125 TFLOP/s bf16 (250 sparse)
L4            121.0   24    -  (NVIDIA )?L4
    NVIDIA L4 data sheet: 242 TFLOP/s sparse, so 121 dense
A100 40 GB    312.0   40    -  (NVIDIA )?A100[- ](SXM4-40GB|PCIE-40GB)
    NVIDIA A100 data sheet: 312 TFLOP/s bf16 (624 sparse)
A100 80 GB    312.0   80    -  (NVIDIA )?A100[- ](SXM4-80GB|80GB PCIe)
    NVIDIA A100 data sheet: 312 TFLOP/s bf16 (624 sparse)
H100          989.4   80    -  (NVIDIA )?H100 80GB HBM3
    NVIDIA H100 architecture paper, SXM5: 989.4 TFLOP/s bf16, dense
H100 PCIe     756.0   80    -  (NVIDIA )?H100 PCIe
    NVIDIA H100 data sheet, PCIe: 1513 TFLOP/s sparse, so 756 dense
H200          989.4  141    -  (NVIDIA )?H200
    NVIDIA H200 data sheet, SXM: 1979 TFLOP/s sparse, the die of the H100
B200         2250.0  180    -  (NVIDIA )?B200
    NVIDIA DGX B200 data sheet: 72 PFLOP/s in FP8, sparse, for 8, so 2250 in bf16,
    dense; DGX B200 user guide: 1440 GB for 8
"""


def _read(table: str) -> tuple[Peak, ...]:
    cards = re.findall(r"^(\S.*\n(?:    .*\n)+)", table, re.MULTILINE)
    found = []
    for first, *source in (card.splitlines() for card in cards):
        card, tflops, gb, units, pattern = re.split(r" {2,}", first)
        said = " ".join(line.strip() for line in source)
        number = None if units == "-" else int(units)
        found.append(Peak(card, pattern, float(tflops), int(gb), said, number))
    return tuple(found)


PEAKS = _read(_TABLE)


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
