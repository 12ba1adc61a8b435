"""lib/gpu_architectures.py: names from what drivers report, and which have bf16."""

from __future__ import annotations

import pytest

from lib.gpu_architectures import has_bf16, of_capability, of_target_version


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("sm_70", False),
        ("sm_75", False),  # T4
        ("sm_80", True),
        ("sm_90", True),
        ("sm_103", True),
        ("gfx906", False),  # MI50
        ("gfx908", True),
        ("gfx942", True),
        ("gfx950", True),
        ("gfx1030", False),  # RDNA2
        ("gfx1100", True),
        ("gfx1201", True),
    ],
)
def test_bf16_by_architecture(name: str, bf16: bool) -> None:
    assert has_bf16(name) is bf16


def test_names_of_what_drivers_report() -> None:
    capabilities = ("7.5", " 12.0 ", "[N/A]", "80000", "")
    assert list(map(of_capability, capabilities)) == ["sm_75", "sm_120", "", "", ""]
    versions = {90010: "gfx90a", 90402: "gfx942", 100300: "gfx1030", 120001: "gfx1201"}
    assert {number: of_target_version(number) for number in versions} == versions
