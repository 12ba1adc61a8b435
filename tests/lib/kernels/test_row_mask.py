"""lib/kernels/row_mask.py against torch's own operations in float64."""

from importlib.util import find_spec
from itertools import product

import pytest
import torch
from torch import Tensor

from tests.interpreted import interpreted

SHAPES = ((1, 1), (7, 9), (20, 20), (1, 200))  # rows, columns
FEW = ((1, 1), (3, 9), (4, 20), (1, 200))  # the interpreter takes its time for each row
RULES = (("topk", 1), ("topk", 8), ("topk", 17), ("topk", 999), ("rms", 0), ("none", 0))


def weights(rows: int, columns: int) -> Tensor:
    """[2, S, N], causal, with ties and zeros."""
    x = torch.rand(2, rows, columns, generator=torch.Generator().manual_seed(columns))
    x[0, rows // 2], x[0, -1, : columns // 2] = 0.25, 0.0
    x[1, -1] = 0.0
    return x.tril(columns - rows)


Case = tuple[tuple[int, int], tuple[str, int], bool]
ALL: tuple[Case, ...] = tuple(product(SHAPES, RULES, (True, False)))


def few() -> tuple[Case, ...]:
    """Each rule at each shape, with and without renorm in turns."""
    pairs = product(enumerate(FEW), enumerate(RULES))
    return tuple((shape, rule, (i + j) % 2 > 0) for (i, shape), (j, rule) in pairs)


def deviation(device: str, cases: tuple[Case, ...]) -> float:
    """Largest difference of kept weights and of gradients from float64's."""
    from gpt2.model.kept_weights import keep_weights
    from lib.kernels.row_mask import keep

    worst = 0.0
    for (rows, columns), (select, k), renorm in cases:
        exact = weights(rows, columns).double().requires_grad_()
        kept = keep_weights(exact, select, k, 0.8, renorm)
        slope = torch.rand(kept.shape, generator=torch.Generator().manual_seed(1))
        (kept * slope).sum().backward()
        ours = weights(rows, columns).to(device).requires_grad_()
        tau = 0.8 if select == "rms" else 0.0
        found = keep(ours, k, tau, renorm, torch.float32)
        assert torch.equal(found.cpu() > 0, kept > 0), (select, k, rows, columns)
        (found * slope.to(device)).sum().backward()
        expected = exact.grad * (kept > 0)  # a kept zero passes nothing on
        for got, wanted in ((found, kept), (ours.grad, expected)):
            worst = max(worst, float((got.cpu() - wanted).detach().abs().max()))
    return worst


def deviation_of_few() -> float:
    return deviation("cpu", few())


@pytest.mark.gpu
def test_kept_weights_on_a_gpu() -> None:
    assert deviation("cuda", ALL) < 1e-4


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_kept_weights_in_the_interpreter() -> None:
    assert interpreted(deviation_of_few) < 1e-4
