"""Peak rates by the names that torch gives devices."""

import re

import pytest

from lib.gpu.peaks import PEAKS, peak_flops, peak_of


@pytest.mark.parametrize(
    ("name", "units", "tflops"),
    [
        ("AMD Radeon PRO W7900", 96, 122.6),
        ("AMD Radeon Pro W7900 Dual Slot", 96, 122.6),
        ("Radeon RX 7900 XTX", 96, 122.8),
        ("AMD Instinct MI250X / MI250", 104, 181.05),
        ("AMD Instinct MI250X / MI250", 110, 191.5),
        ("AMD Instinct MI300X", 304, 1307.4),
        ("AMD Instinct MI210", 104, 181.0),
        ("NVIDIA A10G", 80, 70.0),
        ("NVIDIA A10", 72, 125.0),
        ("NVIDIA L4", 58, 121.0),
        ("NVIDIA A100-SXM4-80GB", 108, 312.0),
        ("NVIDIA A100 80GB PCIe", 108, 312.0),
        ("NVIDIA H100 80GB HBM3", 132, 989.4),
        ("NVIDIA H100 PCIe", 114, 756.0),
        ("NVIDIA H200", 132, 989.4),
        ("NVIDIA B200", 148, 2250.0),
    ],
)
def test_listed_cards(name: str, units: int, tflops: float) -> None:
    assert peak_flops(name, units, "bf16") == pytest.approx(tflops * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA L40S",  # begins like the L4
        "NVIDIA A100",
        "NVIDIA H100 NVL",
        "NVIDIA H200 NVL",
        "NVIDIA GeForce RTX 4090",
        "AMD Radeon RX 7900 XT",
        "AMD Instinct MI300A",
        "AMD Radeon Graphics",
        "",
    ],
)
def test_cards_that_are_not_listed_have_no_peak(name: str) -> None:
    assert peak_of(name) is None and peak_flops(name, 96, "bf16") is None


def test_no_peak_without_the_units_that_tell_two_cards_apart() -> None:
    assert peak_of("AMD Instinct MI250X / MI250", 60) is None


def test_fp32_is_not_measured_against_16_bit_peaks() -> None:
    assert peak_flops("NVIDIA H200", 132, "fp32") is None
    assert peak_flops("NVIDIA H200", 132, "fp16") == 989.4e12


def test_every_peak_has_a_source_with_its_number() -> None:
    for peak in PEAKS:
        numbers = [float(n) for n in re.findall(r"\d+(?:\.\d+)?", peak.source)]
        shown = [n * f for n in numbers for f in (1, 0.5, 1000 / 16)]
        assert any(abs(n - peak.tflops) < 0.6 for n in shown), peak
