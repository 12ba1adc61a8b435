"""Matrix products of cuBLASLt: with GELU or its derivative as their last act, or timed.

torch takes its own products from this library, but offers none that also leaves what
GELU was taken of, nor one times GELU's derivative, and takes the algorithm that the
library thinks best: for slopes of weights another took three quarters of its time (768
by 2,048 over 8,192 rows, H100 80GB, torch 2.11). Names and numbers are those of
cublasLt.h (NVIDIA cuBLAS documentation, cublasLtMatmul; the same in 11 to 13).
Matrices are row-major here and column-major there: out = x W is out^T = W^T x^T.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Hashable
from ctypes import (
    byref,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
    sizeof,
)
from enum import IntEnum
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lib.kernels.choices import choose
from lib.kernels.timing import once, seconds

KINDS = {torch.float16: 2, torch.bfloat16: 14}  # cudaDataType of operands
FP32, COMPUTE_32F = 0, 68
TRANSA, TRANSB, EPILOGUE, BIAS_POINTER, AUX_POINTER, AUX_LD = 3, 4, 7, 8, 11, 12
MAX_WORKSPACE_BYTES, MIN_ALIGNMENT_BYTES = 1, (5, 6, 7, 8)  # of A, B, C, D
WORKSPACE = 32 << 20  # bytes, as torch gives its own products on Hopper
ALIGNMENT = 256  # bytes; more is never asked for
ALGORITHMS = 8  # tried, of those that the library thinks best


class Epilogue(IntEnum):
    """Which product, and what is done to it before it is written."""

    NONE = 1  # out = x^T W
    GELU_AUX = 160  # aux = x W^T, out = gelu(aux)
    GELU_AUX_BIAS = 164  # aux = x W^T + bias, out = gelu(aux)
    DGELU = 192  # out = (x W) gelu'(aux)


class _Algorithm(ctypes.Structure):
    _fields_ = (("data", c_uint64 * 8),)


class _Result(ctypes.Structure):
    _fields_ = (
        ("algorithm", _Algorithm),
        ("workspace", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


@cache
def library() -> ctypes.CDLL:
    """The one that torch has loaded. OSError if there is none."""
    version = torch.version.cuda
    if version is None:
        raise OSError("cuBLASLt belongs to CUDA, which this torch was not built for")
    torch.cuda.init()
    found = ctypes.CDLL(f"libcublasLt.so.{version.partition('.')[0]}")
    found.cublasLtGetStatusString.restype = ctypes.c_char_p
    return found


def missing() -> str:
    """Why there is no cuBLASLt; empty if there is."""
    try:
        library()
    except (OSError, AttributeError, RuntimeError) as error:
        return str(error)
    return ""


def _check(status: int, what: str) -> None:
    if status:
        name = library().cublasLtGetStatusString(status).decode()
        raise RuntimeError(f"{what}: {name}")


def _call(name: str, *arguments: Any) -> None:
    _check(getattr(library(), name)(*arguments), name)


@cache
def _handle(device: int) -> c_void_p:
    handle = c_void_p()
    with torch.cuda.device(device):
        _call("cublasLtCreate", byref(handle))
    return handle


def _set(name: str, target: c_void_p, attribute: int, value: Any) -> None:
    _call(name, target, attribute, byref(value), c_size_t(sizeof(value)))


class _Plan:
    """A product of one shape on one device, and the algorithms that can do it."""

    def __init__(
        self,
        name: str,
        x: Tensor,
        weight: Tensor,
        out: Tensor,
        epilogue: Epilogue,
        align: int,
    ) -> None:
        """name: of the choice among its algorithms, the same in every process."""
        self.handle, self.name = _handle(x.device.index), name
        self.lock = threading.Lock()  # its pointers are those of one call
        self.product = c_void_p()
        _call("cublasLtMatmulDescCreate", byref(self.product), COMPUTE_32F, FP32)
        forward = epilogue not in (Epilogue.NONE, Epilogue.DGELU)
        self._put(TRANSA, c_int32(forward))
        self._put(TRANSB, c_int32(epilogue == Epilogue.NONE))
        self._put(EPILOGUE, c_int32(epilogue))
        if epilogue != Epilogue.NONE:
            self._put(AUX_LD, c_int64(out.stride(0)))
        self.layouts = [_layout(t) for t in (weight, x, out)]
        self.found = self._algorithms(align)

    def _put(self, attribute: int, value: Any) -> None:
        _set("cublasLtMatmulDescSetAttribute", self.product, attribute, value)

    def _algorithms(self, align: int) -> list[_Result]:
        """Those that can do it, the one that should be fastest first."""
        wish, count = c_void_p(), c_int()
        _call("cublasLtMatmulPreferenceCreate", byref(wish))
        setter = "cublasLtMatmulPreferenceSetAttribute"
        _set(setter, wish, MAX_WORKSPACE_BYTES, c_size_t(WORKSPACE))
        for attribute in MIN_ALIGNMENT_BYTES:
            _set(setter, wish, attribute, c_uint32(align))
        found = (_Result * ALGORITHMS)()
        a, b, d = self.layouts
        try:
            _call(
                "cublasLtMatmulAlgoGetHeuristic",
                *(self.handle, self.product, a, b, d, d, wish),
                *(ALGORITHMS, found, byref(count)),
            )
        finally:
            library().cublasLtMatmulPreferenceDestroy(wish)
        return [result for result in found[: count.value] if not result.state]

    def run(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        aux: Tensor | None,
        out: Tensor,
    ) -> None:
        """Write out (and aux, where it is a result) on the present stream."""
        space = torch.empty(WORKSPACE, dtype=torch.uint8, device=x.device)
        operands = [c_void_p(t.data_ptr()) for t in (weight, x, out, space)]
        with self.lock, torch.cuda.device(x.device):
            if aux is not None:
                self._put(AUX_POINTER, c_void_p(aux.data_ptr()))
            if bias is not None:
                self._put(BIAS_POINTER, c_void_p(bias.data_ptr()))
            self._launch(self._choice(operands), operands)

    def _launch(self, number: int, operands: list[c_void_p]) -> None:
        (a, b, d, space), (la, lb, ld) = operands, self.layouts
        _call(
            "cublasLtMatmul",
            *(self.handle, self.product, byref(c_float(1.0)), a, la, b, lb),
            *(byref(c_float(0.0)), d, ld, d, ld, byref(self.found[number].algorithm)),
            *(space, c_size_t(WORKSPACE)),
            c_void_p(torch.cuda.current_stream().cuda_stream),
        )

    def _choice(self, operands: list[c_void_p]) -> int:
        """Number of the algorithm to use (lib/kernels/choices.py)."""
        return choose(
            self.name,
            range(len(self.found)),
            lambda number: self._trial(number, operands, seconds),
            lambda number: self._trial(number, operands, once) == 0.0,
        )

    def _trial(
        self,
        number: int,
        operands: list[c_void_p],
        measure: Callable[[Callable[[], object]], float],
    ) -> float:
        try:
            return measure(lambda: self._launch(number, operands))
        except RuntimeError:  # the heuristics may promise too much
            return float("inf")


def _layout(matrix: Tensor) -> c_void_p:
    rows, columns = matrix.shape
    layout, kind = c_void_p(), KINDS.get(matrix.dtype, FP32)
    shape = c_uint64(columns), c_uint64(rows), c_int64(matrix.stride(0))
    _call("cublasLtMatrixLayoutCreate", byref(layout), kind, *shape)
    return layout


_plans: dict[Hashable, _Plan] = {}


def product(
    x: Tensor,
    weight: Tensor,
    epilogue: Epilogue,
    *,
    out: Tensor,
    aux: Tensor | None = None,
    bias: Tensor | None = None,
) -> None:
    """Write ``out`` [M, N] of x [M, K] as ``epilogue`` says; aux [M, N].

    weight is [N, K] for GELU, which also writes aux, and [K, N] for its derivative,
    which reads it; bias [N]. Without an epilogue weight is [M, L] and out [K, L],
    which may be in fp32. All else is of one 16-bit type, and all have contiguous rows.
    Raises RuntimeError where the library cannot do it.
    """
    tensors = [t for t in (x, weight, bias, aux, out) if t is not None]
    assert all(t.stride(-1) == 1 for t in tensors)
    wide = epilogue == Epilogue.NONE and out.dtype == torch.float32
    assert all(t.dtype == x.dtype or (wide and t is out) for t in tensors)
    if aux is not None:
        assert aux.stride() == out.stride(), "one leading dimension is told for both"
    align = min(ALIGNMENT, *(t.data_ptr() & -t.data_ptr() for t in tensors))
    shapes = tuple((tuple(t.shape), t.stride(0)) for t in (x, weight, out))
    key = (epilogue, x.dtype, out.dtype, x.device.index, align, shapes)
    if key not in _plans:
        kind = str(x.dtype).removeprefix("torch.")
        sizes = " ".join("x".join(map(str, shape)) + f"/{s}" for shape, s in shapes)
        name = f"cublaslt {epilogue.name} {kind} {sizes} aligned {align}"
        _plans[key] = _Plan(name, x, weight, out, epilogue, align)
    plan = _plans[key]
    if not plan.found:
        raise RuntimeError(f"cuBLASLt has no algorithm for {epilogue.name} of {shapes}")
    plan.run(x, weight, bias, aux, out)
