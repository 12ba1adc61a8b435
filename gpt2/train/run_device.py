"""The device of a run: which one, and torch's threads and arithmetic on it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from gpt2.settings.checks import naming
from gpt2.settings.schema import Resources
from gpt2.train.distributed import Ranks
from gpt2.train.failures import DeviceFailed
from lib.gpu import device as devices
from lib.jobs.slots import GPUS


def select_device(
    name: str, environ: Mapping[str, str], ranks: Ranks
) -> devices.DeviceInfo:
    """The device of this rank, within what the runner has set aside for the run.

    Raises ValueError for a DEVICE that is not there, DeviceFailed if torch does not see
    the GPUs that were set aside.
    """
    promised = environ.get(GPUS, "")
    if promised and name in ("auto", "cuda", "rocm"):
        expected, seen = len(promised.split(",")), devices.probe_runtime().gpus
        if seen != expected:
            raise DeviceFailed(
                f"the runner has set GPU {promised} aside, but torch sees {seen} GPUs: "
                "check the driver, or use DEVICE=cpu"
            )
    with naming("DEVICE"):
        device = devices.select_device(name)
    if device.is_gpu and not ranks.is_single:
        device = devices.select_device(f"{device.backend}:{ranks.local}")
    return device


def set_up_torch(device: devices.DeviceInfo, resources: Resources) -> None:
    """Threads and arithmetic; on a CPU runs have to agree bit for bit."""
    if resources.threads:
        torch.set_num_threads(resources.threads)
    devices.set_math(device, tf32=resources.tf32, benchmark=resources.cudnn_benchmark)
    devices.reset_peak_memory(device)
    if not device.is_gpu:
        # As use_deterministic_algorithms, which imports the compiler: 2 s more.
        torch.set_deterministic_debug_mode("error")
        # Its filling of fresh memory finds bugs of kernels and costs time.
        fill = "fill_uninitialized_memory"
        setattr(torch.utils.deterministic, fill, False)
