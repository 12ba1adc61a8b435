"""gpt2/train/failures.py: which errors are a GPU's, and which the code's."""

from __future__ import annotations

import pytest
import torch

from gpt2.train.distributed import Ranks
from gpt2.train.failures import DeviceFailed, end_of
from gpt2.train.run_device import select_device
from lib.jobs.slots import GPUS

CUDA = "CUDA error: {}\nCUDA kernel errors might be asynchronously reported"


@pytest.mark.parametrize(
    "text",
    [
        CUDA.format("unspecified launch failure"),
        CUDA.format("uncorrectable ECC error encountered"),
        CUDA.format("an illegal memory access was encountered"),
        "HIP error: the operation cannot be performed in the present state",
        "No CUDA GPUs are available",
        "Unexpected error from cudaGetDeviceCount(). Error 802: system not yet ready",
        "Triton Error [CUDA]: unspecified launch failure",
        "CUDNN_STATUS_EXECUTION_FAILED",
    ],
)
def test_errors_of_a_gpu(text: str) -> None:
    end = end_of(RuntimeError(text))
    assert (end.exit_code, end.status, end.failure) == (8, "failed", "device")
    assert text.partition("\n")[0] in end.message


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (RuntimeError(CUDA.format("device-side assert triggered")), "crash"),
        (RuntimeError(CUDA.format("no kernel image is available")), "crash"),
        (RuntimeError("NCCL error: unhandled cuda error, CUDA error"), "crash"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "crash"),
        (ValueError("CUDA error"), "crash"),
        (RuntimeError(CUDA.format("out of memory")), "oom"),
    ],
)
def test_errors_that_another_gpu_would_not_help(error: Exception, failure: str) -> None:
    assert end_of(error).failure == failure


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_gpu_that_is_set_aside_and_not_there(name: str) -> None:
    with pytest.raises(DeviceFailed, match="torch sees 0 GPUs") as caught:
        select_device(name, {GPUS: "1"}, Ranks())
    assert end_of(caught.value).failure == "device"
    assert not select_device("cpu", {GPUS: "1"}, Ranks()).is_gpu
