"""lib/kernels/topk_tiles.py against sorting."""

import pytest
import torch

from tests.interpreted import interpreted

pytest.importorskip("triton", reason="Triton is not installed")
import triton
import triton.language as tl

from lib.kernels.topk_tiles import keep_eights, keep_largest


@triton.jit
def _largest(x_ptr, out_ptr, N, BM: tl.constexpr):
    rows, slots = tl.arange(0, BM)[:, None], tl.arange(0, 8)[None, :]
    eights = tl.full([BM, 4, 8], float("-inf"), tl.float32)
    for n in range(0, N, 64):
        s = tl.load(x_ptr + rows * N + n + tl.arange(0, 64)[None, :])
        eights = keep_eights(eights, s, BM)
    top = tl.full([BM, 8], float("-inf"), tl.float32)
    top = keep_largest(top, tl.reshape(eights, [BM, 32]), 8, 32)
    tl.store(out_ptr + rows * 8 + slots, top)


def is_sorting() -> bool:
    """Whether the kernel finds what sorting finds; rows with ties and -inf too."""
    x = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    x[3], x[5, 10:] = 1.0, float("-inf")
    x[6] = x[6].round()
    out = torch.empty(16, 8)
    _largest[(1,)](x, out, 256, BM=16)
    return torch.equal(out.sort(-1).values, x.sort(-1).values[:, -8:])


def test_the_eight_largest_are_those_of_sorting() -> None:
    assert interpreted(is_sorting)
