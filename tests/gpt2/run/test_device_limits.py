"""gpt2/run/device_limits.py: what devices cannot do is refused before any run."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2.run.device_limits import require_here, require_on, too_many_loaders
from gpt2.run.placement import describe_plan
from lib.jobs.slots import VISIBLE
from tests.gpt2.helpers import tiny_plan
from tests.scratch import write

CPUS = {"CPU": 8.0}
T4 = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:T4": 1.0}
H100 = {"CPU": 8.0, "GPU": 8.0, "accelerator_type:H100": 1.0}
UNKNOWN = {"CPU": 8.0, "GPU": 1.0}
AUTO = {"DEVICE": "auto", "STEPS": "0", "SEEDS": "1"}
BF16 = {**AUTO, "MIXED_PRECISION": "y"}
FP16 = {**BF16, "MIXED_PRECISION_FP16": "y"}
NO_BF16 = r"step00-baseline: MIXED_PRECISION_DTYPE=bf16, but .* has no bf16: use MIXED"


@pytest.mark.parametrize(
    ("symbols", "machines", "says"),
    [
        (
            FP16,
            [CPUS],
            "DEVICE=auto is the CPU on this Ray cluster.*MIXED_PRECISION_FP",
        ),
        ({**AUTO, "DDP_BACKEND": "nccl"}, [CPUS], "DDP_BACKEND"),
        (
            {**BF16, "SWEEP": "MIXED_PRECISION_DTYPE=bf16,fp16"},
            [CPUS],
            "^step00-baseline/mixed_precision=fp16: DEVICE=auto is the CPU",
        ),
        (BF16, [CPUS, T4], NO_BF16),
        ({**BF16, "DEVICE": "cuda"}, [T4], r"Ray cluster \(T4\)"),
    ],
)
def test_a_ray_cluster_refuses_as_a_machine_does(
    symbols: dict[str, str], machines: list[dict[str, float]], says: str
) -> None:
    plan = tiny_plan(**symbols)
    with pytest.raises(ValueError, match=says):
        require_on(plan, machines)


def test_what_some_machine_of_a_cluster_may_do_is_accepted() -> None:
    require_on(tiny_plan(**FP16), [CPUS, T4])
    require_on(tiny_plan(**BF16), [CPUS])
    for other in (H100, UNKNOWN):
        require_on(tiny_plan(**BF16), [T4, other])


@pytest.mark.parametrize(
    ("capabilities", "is_refused"),
    [("7.5\n7.5\n", True), ("7.5\n9.0\n", False), ("[N/A]\n", False)],
)
def test_gpus_without_bf16_are_noticed_before_a_matrix(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capabilities: str,
    is_refused: bool,
) -> None:
    _two_gpus(tmp_path, monkeypatch, capabilities)
    require_here(tiny_plan(**FP16))
    require_here(tiny_plan(**{**BF16, "DEVICE": "cpu"}))
    if is_refused:
        for device in ("auto", "cuda", "cuda:1"):
            with pytest.raises(
                ValueError, match=rf"machine \(sm_75\).*{NO_BF16[-20:]}"
            ):
                require_here(tiny_plan(**{**BF16, "DEVICE": device}))
    else:
        assert "on GPU 0, 1" in describe_plan(tiny_plan(**BF16))


def test_more_loader_processes_than_cores_are_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt2.run.device_limits.usable_cores", lambda: 4)
    _two_gpus(tmp_path, monkeypatch, "9.0\\n9.0\\n")
    for symbols, processes in (
        ({"NUM_WORKERS": "4"}, 0),
        ({"NUM_WORKERS": "5"}, 5),
        ({"NUM_WORKERS": "2", "JOBS": "3"}, 6),
        ({"NUM_WORKERS": "2", "JOBS": "3", "ENGINE": "ray"}, 0),
        # A run on each GPU, or on each set of them.
        ({"NUM_WORKERS": "3", "DEVICE": "auto"}, 6),
        ({"NUM_WORKERS": "3", "DEVICE": "cuda", "GPUS": "1"}, 0),
        ({"NUM_WORKERS": "3", "DEVICE": "cuda:1"}, 0),
        ({"NUM_WORKERS": "3", "DEVICE": "auto", "DDP_GPUS_PER_JOB": "2"}, 6),
        ({**AUTO, "NUM_WORKERS": "3"}, 0),  # only one run is planned
    ):
        found = too_many_loaders(tiny_plan(**symbols))
        assert len(found) == bool(processes), symbols
        assert all(f"{processes} loader processes at a time" in line for line in found)
        assert all("4 cores" in line for line in found)


def _two_gpus(folder: Path, monkeypatch: pytest.MonkeyPatch, capabilities: str) -> None:
    """GPUs that an nvidia-smi claims; torch is not asked."""
    answers = f"-L) printf 'GPU 0: A\\nGPU 1: B\\n' ;;\n*) printf '{capabilities}' ;;\n"
    text = f'#!/bin/sh\ncase "$1" in\n{answers}esac\n'
    tool = write(folder, "bin/nvidia-smi", text)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent))
    monkeypatch.setenv(VISIBLE["cuda"], "0,1")  # a real driver may show others
    monkeypatch.delenv(VISIBLE["rocm"], raising=False)
