"""lib/kernels/topk_rows.py against sorting and against products with whole matrices."""

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from tests.interpreted import interpreted
from tests.lib.kernels.test_row_mask import weights

# rows, kept, width
SIZES = ((1, 1, 1), (5, 5, 6), (20, 3, 9), (150, 8, 33), (700, 16, 40), (1024, 8, 96))
FEW = SIZES[:3]  # the interpreter takes its time for each row


def unwritten(x: Tensor) -> Tensor:
    """NaN where the kernel of the means writes nothing, beyond the diagonal's tiles."""
    square = torch.arange(len(x[0])) // 16
    return x.masked_fill(square > square[:, None], torch.nan)


def deviation(device: str, sizes: tuple[tuple[int, int, int], ...]) -> float:
    """Largest difference of sums and gradients from products in float64; what is found
    has to equal what sorting finds."""
    from lib.kernels.topk_rows import spread, sum_kept, write_largest

    worst = 0.0
    torch.manual_seed(0)
    for rows, k, width in sizes:
        x = weights(rows, rows)
        values = torch.empty(2, rows, k, device=device)
        columns = torch.empty(2, rows, k, dtype=torch.int32, device=device)
        write_largest(unwritten(x).to(device), columns, values)
        falling = torch.sort(x, dim=-1, descending=True, stable=True)
        expected = torch.where(falling.values > 0, falling.indices, -1)
        assert torch.equal(columns.cpu(), expected[..., :k].int())
        assert torch.equal(values.cpu(), falling.values[..., :k])
        low, slope = torch.rand(2, 2, rows, width).sub(0.5).to(device).unbind()
        ours = [values.requires_grad_(), low.requires_grad_()]
        total = sum_kept(ours[0], columns, ours[1])
        found = [total, *torch.autograd.grad(total, ours, slope)]
        exact = [y.detach().double().requires_grad_() for y in ours]
        matrix = torch.zeros(2, rows, rows, dtype=torch.double, device=device)
        matrix = matrix.scatter_add(-1, columns.clamp_min(0).long(), exact[0])
        assert torch.equal(spread(columns, values, rows, torch.float32), matrix.float())
        true = matrix @ exact[1]
        slopes = torch.autograd.grad(true, exact, slope.double())
        wanted = [true, torch.where(columns >= 0, slopes[0], 0.0), slopes[1]]
        for a, b in zip(found, wanted, strict=True):
            worst = max(worst, float((a - b).detach().abs().max()))
    return worst


def deviation_of_few() -> float:
    return deviation("cpu", FEW)


@pytest.mark.gpu
def test_kept_rows_on_a_gpu() -> None:
    assert deviation("cuda", SIZES) < 1e-4


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_kept_rows_in_the_interpreter() -> None:
    assert interpreted(deviation_of_few) < 1e-4
