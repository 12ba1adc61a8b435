"""Matrix products of cuBLASLt, with GELU or its derivative applied as they are written.

torch takes its own products from this library, but has none that also returns the
argument of GELU or multiplies by GELU's derivative, and it takes the algorithm that the
library ranks first: for gradients of weights another took three quarters of its time
(768 by 2,048 over 8,192 rows, H100 80GB, torch 2.11). nvmath-python, NVIDIA's binding,
plans and launches them. An MLP of 768 by 3,072 took no longer than by calls of the
library through ctypes: forward and backward 0.425 and 1.583 ms against 0.431 and 1.586
(8,192 and 32,768 rows, CUDA graphs, H200, torch 2.11, nvmath-python 1.0).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from functools import cache, partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from lib.kernels.choices import choose
from lib.kernels.timing import once, seconds

DTYPES = (torch.float16, torch.bfloat16)  # of operands
WORKSPACE = 32 << 20  # bytes, as torch gives its own products on Hopper
ALIGNMENT = 256  # bytes; algorithms ask for no more

_plans: dict[Hashable, Any] = {}
_lock = threading.Lock()  # a plan holds the operands of one call


@cache
def missing() -> str:
    """Why cuBLASLt cannot be used; empty if it can."""
    if torch.version.cuda is None:
        return "cuBLASLt belongs to CUDA, which this torch was not built for"
    try:
        import_module("nvmath.linalg.advanced")
        import_module("nvmath.bindings.cublasLt").get_version()  # loads the library
    except (ImportError, OSError, RuntimeError) as error:
        return f"needs the package nvmath-python: {error}"
    return ""


def product(
    left: Tensor,
    right: Tensor,
    epilogue: str = "DEFAULT",
    *,
    bias: Tensor | None = None,
    aux: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | None]:
    """left right [M, N] with an epilogue, and the argument of GELU [M, N] or None.

    epilogue: of nvmath's MatmulEpilog: DEFAULT; GELU_AUX or, with ``bias`` [N],
    GELU_AUX_BIAS, which also give the argument; DGELU, which multiplies by GELU's
    derivative at ``aux`` [M, N], contiguous. left [M, K], M > 1, and right [K, N] are
    of one 16-bit dtype and contiguous in one dimension; N is a multiple of 8. dtype: of
    the result, that of left or fp32. Raises RuntimeError where no algorithm does it.
    """
    # The library's matrices are column-major, and its epilogues allow no other result:
    # the transposed product right^T left^T in that order is left right in row order.
    a, b = right.t(), left.t()
    inputs = {}
    if bias is not None:
        inputs["bias"] = bias.unsqueeze(1)
    if aux is not None:
        inputs["gelu_aux"] = aux.t()
    dtype = dtype or left.dtype
    kinds = f"{left.dtype} {dtype}".replace("torch.", "")
    name = f"cublaslt {epilogue} {kinds} {_layout(a)} {_layout(b)}"
    key = left.device.index, name
    with _lock:
        if key not in _plans:
            _plans[key] = _planned(a, b, epilogue, inputs, dtype)
        plan = _plans[key]
        plan.reset_operands_unchecked(a=a, b=b, epilog_inputs=inputs or None)
        found = plan.execute(algorithm=_algorithm(plan, name))
        plan.release_operands()
    out, more = found if isinstance(found, tuple) else (found, {})
    argument = more.get("gelu_aux")
    return out.t(), None if argument is None else argument.t()


def _layout(x: Tensor) -> str:
    """Key of an algorithm: sizes, strides and alignment in bytes."""
    align = min(ALIGNMENT, x.data_ptr() & -x.data_ptr())
    return f"{x.shape[0]}x{x.shape[1]}/{x.stride(0)},{x.stride(1)}@{align}"


def _planned(
    a: Tensor, b: Tensor, epilogue: str, inputs: dict[str, Tensor], dtype: torch.dtype
) -> Any:
    """A product of one shape on one device, with the algorithms that can do it."""
    from nvmath import CudaDataType
    from nvmath.linalg.advanced import Matmul, MatmulEpilog

    options: dict[str, Any] = {"memory_limit": WORKSPACE}
    if dtype == torch.float32:
        options["result_type"] = CudaDataType.CUDA_R_32F
    plan = Matmul(a, b, options=options)
    epilog = None if epilogue == "DEFAULT" else MatmulEpilog[epilogue]
    plan.plan(epilog=epilog, epilog_inputs=inputs or None)
    return plan


def _algorithm(plan: Any, name: str) -> Any:
    """The algorithm to use (lib/kernels/choices.py), of those that may do it."""
    trial = partial(_trial, plan)
    number = choose(
        name,
        range(len(plan.algorithms)),
        partial(trial, seconds),
        lambda number: trial(once, number) == 0.0,
    )
    return plan.algorithms[number]


def _trial(
    plan: Any, measure: Callable[[Callable[[], object]], float], number: int
) -> float:
    try:
        return measure(lambda: plan.execute(algorithm=plan.algorithms[number]))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # the heuristics may promise too much; nvmath has its own errors
        return float("inf")
