"""lib/kernels/timing.py: what a kernel takes is not what its launch takes."""

from __future__ import annotations

import time

import pytest
import torch

from lib.kernels.timing import seconds

SLOW = 2e-3  # seconds that a host needs for a launch, with other work on the machine


@pytest.mark.gpu
def test_a_host_slower_than_the_gpu_is_not_measured() -> None:
    few, many = (torch.empty(2**n, device="cuda") for n in (10, 26))
    calls: list[torch.Tensor] = []

    def launch(x: torch.Tensor) -> None:
        calls.append(x)
        time.sleep(SLOW)
        x.zero_()

    short, long = seconds(lambda: launch(few)), seconds(lambda: launch(many))
    assert 0 < short < SLOW / 4, "a write of 4 KB"
    assert short < long, "a write of 256 MB"
    assert len(calls) > 20
