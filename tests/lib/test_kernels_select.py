"""lib/kernels/select.py against sorting."""

from importlib.util import find_spec

import pytest
import torch

from tests.interpreted import interpreted


def differences(device: str) -> list[int]:
    """How many thresholds are not the sorted row's; rows with ties and zeros too."""
    from lib.kernels.select import kth_largest

    found = []
    for columns, k in ((1, 1), (9, 3), (64, 64), (300, 16)):
        generator = torch.Generator().manual_seed(columns)
        x = torch.rand(2, 7, columns, generator=generator)
        x[0, 1], x[0, 2, : columns // 2] = 0.25, 0.0
        x[1, 3] = 0.0
        x = x.to(device)
        expected = x.sort(dim=-1, descending=True).values[..., k - 1 : k]
        found.append(int((kth_largest(x, k) != expected).sum()))
    return found


@pytest.mark.gpu
def test_thresholds_on_a_gpu() -> None:
    assert differences("cuda") == [0, 0, 0, 0]


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_thresholds_in_the_interpreter() -> None:
    program = (
        "from tests.lib.test_kernels_select import differences as d; print(d('cpu'))"
    )
    assert interpreted(program) == "[0, 0, 0, 0]\n"
