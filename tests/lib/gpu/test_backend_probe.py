"""Kernels that torch is found to use, and the warning if they are slow."""

from dataclasses import replace

import pytest
import torch

from lib.gpu import backend_probe
from lib.gpu import device as devices

CPU = devices.select_device("cpu")


def test_attention_is_tried_and_no_random_number_is_drawn() -> None:
    before = torch.get_rng_state()
    found = backend_probe.probe(CPU, "fp32", 32, {"PYTORCH_ALLOC_CONF": "x"})
    assert torch.equal(torch.get_rng_state(), before)
    assert found.sdpa in found.usable and "math" in found.usable
    assert "cudnn" not in found.usable and found.warning == ""
    assert found.allocator == "torch's default"  # nothing sets one on a CPU
    assert found.sdpa in found.rows()["SDPA"]


@pytest.mark.parametrize(
    ("backend", "architecture", "precision", "remedy"),
    [
        ("rocm", "gfx1100", "bf16", "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL=1"),
        ("rocm", "gfx1030", "fp16", "AOTriton knows gfx1030"),
        ("rocm", "gfx1100", "fp32", "train in bf16"),
        ("cuda", "sm_90", "bf16", "multiple of 8"),
    ],
)
def test_plain_maths_on_a_gpu_is_warned_about(
    backend: str, architecture: str, precision: str, remedy: str
) -> None:
    gpu = replace(CPU, backend=backend, architecture=architecture)
    assert remedy in backend_probe.warning_of(gpu, "math", precision)
    assert backend_probe.warning_of(gpu, "flash", precision) == ""
    assert backend_probe.warning_of(CPU, "math", precision) == ""


@pytest.mark.gpu
def test_on_a_gpu_a_fused_kernel_serves() -> None:
    found = backend_probe.probe(devices.select_device("auto"), "bf16", 64, {})
    assert found.sdpa != "math" and found.sdpa in found.usable, found
