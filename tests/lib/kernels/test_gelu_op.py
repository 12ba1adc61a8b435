"""lib/kernels/gelu_op.py against torch's own operations in float64."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lib.kernels import gelu_op
from lib.kernels.cublaslt import missing
from lib.kernels.gelu_op import gelu_backward, linear_gelu, through_gelu

# Rows, width, inner width, rows of the second matrix.
SHAPES = ((1, 8, 16, 8), (7, 24, 40, 16), (300, 64, 256, 72), (1024, 768, 3072, 768))
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 1e-5}


def leaves(shape: tuple[int, ...], bias: bool) -> list[Tensor]:
    """x, into, outof and, if wanted, bias; float64."""
    rows, width, inner, out = shape
    generator = torch.Generator().manual_seed(rows)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, dtype=torch.float64)

    found = [draw(rows, width), draw(inner, width) / 3, draw(out, inner) / 3]
    return [*found, draw(inner)] if bias else found


def plain(x: Tensor, into: Tensor, outof: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(F.linear(x, into, bias), approximate="tanh") @ outof.T


def ours(x: Tensor, into: Tensor, outof: Tensor, bias: Tensor | None = None) -> Tensor:
    return through_gelu(x, into, bias, outof)


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_the_formula(bias: bool) -> None:
    mine = [x.requires_grad_() for x in leaves(SHAPES[1], bias)]
    slopes = torch.randn(7, 16, dtype=torch.float64)
    found = [ours(*mine), *torch.autograd.grad(ours(*mine), mine, slopes)]
    wanted = [plain(*mine), *torch.autograd.grad(plain(*mine), mine, slopes)]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_batches_keep_their_shape_and_autocast_its_type() -> None:
    x, into, outof = (x.float() for x in leaves((6, 8, 16, 8), False))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ours(x.view(2, 3, 8), into, outof)
    assert (found.shape, found.dtype) == ((2, 3, 8), torch.bfloat16)


def test_the_operators_keep_what_torch_asks_of_them() -> None:
    x, into, outof, bias = (x.float() for x in leaves(SHAPES[1], True))
    hidden, _ = linear_gelu(x, into, bias)
    calls = (
        (linear_gelu, (x, into, bias)),
        (gelu_backward, (x @ into.T @ outof.T, outof, hidden)),
    )
    for operator, arguments in calls:
        torch.library.opcheck(
            operator, arguments, test_utils=("test_schema", "test_faketensor")
        )


@pytest.mark.parametrize("cuda", ["13.0", None])
def test_cublaslt_serves_on_nvidia_alone(
    cuda: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)  # torch calls AMD's GPUs cuda too
    for rows in (1, 2):
        on_a_gpu = SimpleNamespace(
            device=torch.device("cuda"), dtype=torch.bfloat16, shape=(rows, 8)
        )
        assert gelu_op._serves(on_a_gpu) == (cuda is not None and rows > 1)
    assert not gelu_op._serves(torch.empty(0, dtype=torch.bfloat16))


# ---- on a GPU -------------------------------------------------------------------


@pytest.fixture
def library() -> None:
    if why := missing():
        pytest.skip(why)


def layouts(kind: torch.dtype, x: Tensor) -> list[Tensor]:
    """The matrix as it is, with gaps between rows, transposed, and off its start."""
    x = x.to("cuda", kind)
    wide = F.pad(x, (0, 24))[:, : x.shape[1]]
    late = torch.cat([x.new_zeros(8), x.flatten()])[8:].view_as(x)
    return [x, wide, x.T.contiguous().T, late]


@pytest.mark.gpu
@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("kind", TOLERANCE)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_on_a_gpu_equal_the_formula(
    shape: tuple[int, ...], bias: bool, kind: torch.dtype
) -> None:
    exact = leaves(shape, bias)
    for layout in range(4):
        mine = [
            layouts(kind, x)[layout] if x.dim() == 2 else x.to("cuda", kind)
            for x in exact
        ]
        truth = [x.detach().double().requires_grad_() for x in mine]
        mine = [x.requires_grad_() for x in mine]
        slopes = torch.randn(shape[0], shape[3], device="cuda").to(kind)
        # What is freed here is what the operators are given to write to.
        for _ in range(2):
            torch.full((shape[0] * shape[2],), float("nan"), device="cuda", dtype=kind)
        found = [ours(*mine), *torch.autograd.grad(ours(*mine), mine, slopes)]
        out = plain(*truth)
        wanted = [out, *torch.autograd.grad(out, truth, slopes.double())]
        for number, (a, b) in enumerate(zip(found, wanted, strict=True)):
            off = ((a - b).norm() / b.norm()).item()
            assert off < TOLERANCE[kind], (layout, number)


@pytest.mark.gpu
@pytest.mark.usefixtures("library")
def test_products_can_be_recorded() -> None:
    x, into, outof, bias = (
        x.to("cuda", torch.bfloat16) for x in leaves(SHAPES[2], True)
    )
    expected = ours(x, into, outof, bias)
    graph, place = torch.cuda.CUDAGraph(), torch.zeros_like(x)
    with torch.cuda.graph(graph):
        found = ours(place, into, outof, bias)
    for _ in range(2):  # with the graph and without it, as training and evaluation do
        place.copy_(x)
        graph.replay()
        assert torch.equal(found, expected)
        assert torch.equal(ours(x, into, outof, bias), expected)
        found.zero_()


@pytest.mark.gpu
@pytest.mark.usefixtures("library")
def test_a_plan_keeps_no_operand() -> None:
    x, into, outof = (x.to("cuda", torch.float16) for x in leaves(SHAPES[2], False))
    ours(x, into, outof)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    size, watched = x.untyped_storage().nbytes(), weakref.ref(x)
    del x
    gc.collect()
    assert watched() is None
    assert torch.cuda.memory_allocated() <= before - size
