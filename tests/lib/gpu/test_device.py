"""lib/gpu/device.py on this machine's CPU, and its GPU parts on recorded properties."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch

from lib.gpu import device

ROOT = Path(__file__).resolve().parents[3]

CPU = device.Runtime(version="2.13.0+cpu", cuda=None, hip=None, gpus=0)
CUDA = device.Runtime(version="2.13.0+cu130", cuda="13.0", hip=None, gpus=2)
ROCM = device.Runtime(version="2.13.0+rocm7.1", cuda=None, hip="7.1.25424", gpus=1)
BROKEN = device.Runtime(version="2.13.0+cu130", cuda="13.0", hip=None, gpus=0)

H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    total_memory=85_017_755_648,
    multi_processor_count=132,
)
MI250 = SimpleNamespace(
    name="AMD Instinct MI250X",
    major=9,
    minor=0,
    gcnArchName="gfx90a:sramecc+:xnack-",
    total_memory=68_702_699_520,
    multi_processor_count=110,
)


@pytest.mark.parametrize(
    ("name", "runtime", "expected"),
    [
        ("auto", CPU, ("cpu", 0)),
        ("auto", BROKEN, ("cpu", 0)),
        ("auto", CUDA, ("cuda", 0)),
        ("auto", ROCM, ("rocm", 0)),
        ("cpu", CUDA, ("cpu", 0)),
        ("cuda:1", CUDA, ("cuda", 1)),
        ("rocm:0", ROCM, ("rocm", 0)),
    ],
)
def test_choice(name: str, runtime: device.Runtime, expected: tuple[str, int]) -> None:
    assert device.choose_device(name, runtime) == expected


@pytest.mark.parametrize(
    ("name", "runtime", "says"),
    [
        ("cuda", CPU, "built for the CPU only"),
        ("rocm", CUDA, "built for CUDA, not for rocm.*use cuda or auto"),
        ("cuda", ROCM, "built for ROCm, not for cuda.*use rocm or auto"),
        ("cuda", BROKEN, "sees 0 GPUs"),
        ("cuda:2", CUDA, "sees 2 GPUs"),
        ("rocm:1", ROCM, "sees 1 GPU,"),
        ("gpu", CUDA, "not a device; allowed are auto, cpu"),
        ("cpu:1", CPU, "not a device"),
        ("cuda:", CUDA, "not a device"),
        ("", CPU, "not a device"),
    ],
)
def test_what_is_not_there_is_an_error(
    name: str, runtime: device.Runtime, says: str
) -> None:
    with pytest.raises(device.DeviceError, match=says):
        device.choose_device(name, runtime)


def test_select_on_this_machine() -> None:
    info = device.select_device("cpu")
    assert (info.backend, info.device, info.is_gpu) == ("cpu", "cpu", False)
    assert info.torch_version == torch.__version__ and info.compute_units >= 1
    if not torch.cuda.is_available():
        with pytest.raises(device.DeviceError):
            device.select_device("cuda")
        assert device.select_device("auto") == info
    else:
        found = device.select_device("auto")
        assert found.is_gpu and found.memory_bytes and found.driver != "unknown"


def test_gpu_info_from_recorded_properties() -> None:
    nvidia = device.gpu_info(H100, CUDA, "cuda", 1, "580.65.06")
    assert (nvidia.architecture, nvidia.runtime, nvidia.bf16) == ("sm_90", "13.0", True)
    assert nvidia.device == "cuda:1"
    amd = device.gpu_info(MI250, ROCM, "rocm", 0, "6.14.5")
    assert (amd.architecture, amd.runtime, amd.bf16) == ("gfx90a", "7.1.25424", True)
    assert amd.device == "cuda:0"  # torch's name for it


@pytest.mark.parametrize(
    "text",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19\n",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.129.03  Rel\n",
    ],
)
def test_driver_versions_from_recorded_files(tmp_path: Path, text: str) -> None:
    nvidia = tmp_path / "proc/driver/nvidia/version"
    amd = tmp_path / "sys/module/amdgpu/version"
    for path, content in ((nvidia, text), (amd, "6.14.5\n")):
        path.parent.mkdir(parents=True)
        path.write_text(content)
    assert device.driver_version("cuda", tmp_path) == "535.129.03"
    assert device.driver_version("rocm", tmp_path) == "6.14.5"


def test_driver_that_says_nothing(tmp_path: Path) -> None:
    assert device.driver_version("cuda", tmp_path) == "unknown"
    assert device.driver_version("rocm", tmp_path).startswith("amdgpu of kernel ")


def test_describe_names_what_a_reader_wants() -> None:
    text = device.describe(device.gpu_info(MI250, ROCM, "rocm", 0, "6.14.5"))
    for part in ("rocm", "MI250X", "gfx90a", "64.0 GiB", "HIP", "7.1.25424", "6.14.5"):
        assert part in text
    text = device.describe(device.select_device("cpu"))
    assert "driver" not in text and max(map(len, text.splitlines())) < 100


def test_autocast_computes_in_the_asked_precision() -> None:
    info = device.select_device("cpu")
    a = torch.ones(2, 2)
    with device.autocast(info, "bf16"):
        assert (a @ a).dtype is torch.bfloat16
    with device.autocast(info, "fp32"):
        assert (a @ a).dtype is torch.float32


def test_autocast_refuses_what_would_not_be_real() -> None:
    cpu = device.select_device("cpu")
    old = SimpleNamespace(**{**vars(H100), "major": 7, "name": "V100"})
    gpu = device.gpu_info(old, CUDA, "cuda", 0, "580")
    with pytest.raises(ValueError, match="V100 has no bf16; use fp16"):
        device.autocast(gpu, "bf16")
    with pytest.raises(ValueError, match="bf16 or fp32 on a CPU"):
        device.autocast(cpu, "fp16")
    with pytest.raises(ValueError, match="allowed are fp32, bf16, fp16"):
        device.autocast(cpu, "float32")


def test_only_fp16_scales_the_loss() -> None:
    info = device.select_device("cpu")
    assert not device.grad_scaler(info, "bf16").is_enabled()
    assert not device.grad_scaler(info, "fp32").is_enabled()


def test_seeds_reach_all_three_generators() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), numpy.random.rand(), torch.rand(()).item()

    device.seed_everything(7)
    first = draw()
    other = draw()
    device.seed_everything(7)
    assert draw() == first
    assert all(a != b for a, b in zip(first, other, strict=True))
    with pytest.raises(ValueError, match="seed -1"):
        device.seed_everything(-1)


def test_set_math_leaves_the_cpu_alone() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    device.set_math(device.select_device("cpu"), tf32=True, benchmark=True)
    now = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    assert now == before


def test_peak_memory_of_a_cpu_run_grows_and_says_what_it_is() -> None:
    code = """
from lib.gpu import device
info = device.select_device("cpu")
before, what = device.peak_memory(info)
block = b"x" * (before + 50_000_000)
device.reset_peak_memory(info)
after, _ = device.peak_memory(info)
print(what, "|", after >= before + 50_000_000)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "max RSS of the process | True"
