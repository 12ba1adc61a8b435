"""Backends of the MLP: torch's products with GELU between them, or cuBLASLt's with GELU
inside (lib/kernels/gelu_op.py)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gpt2.model.autotune import trials
from gpt2.model.backends.call import first_reason
from gpt2.model.mlp import materialises, through_gelu
from gpt2.settings.schema import Model, Settings
from lib.gpu.compile_cache import compiled
from lib.gpu.device import DTYPES

BACKENDS = ("torch", "cublaslt")


def key(settings: Settings, batch: int) -> str:
    """Key of a ranking: the same for all arms with such an MLP."""
    m, resources = settings.model, settings.resources
    shape = f"{batch * m.block_size} x {m.n_embd} x {m.mlp_width}"
    compiled = "compiled" if resources.compile_model else "eager"
    bias = "with" if m.bias else "without"
    return f"MLP {shape} {bias} bias, {settings.optim.mixed_precision}, {compiled}"


def rank(settings: Settings, device: torch.device, batch: int) -> tuple[list[str], str]:
    """The right backends, the fastest first, and a line for the log.

    ``batch``: sequences in a micro batch.
    """
    if why := unsupported(settings, device):
        return ["torch"], f"MLP: torch; cublaslt {why}"
    tried = [try_mlp(backend, settings, device, batch) for backend in BACKENDS]
    return trials.ranked(tried, "torch"), trials.report("MLP", tried)


def unsupported(settings: Settings, device: torch.device) -> str:
    """Why cuBLASLt cannot compute the MLP; empty if it can."""
    if device.type != "cuda":
        return "needs an NVIDIA GPU"
    # Not before: to declare the operators takes torch a while.
    from lib.kernels.cublaslt import missing
    from lib.kernels.gelu_op import MULTIPLE

    m, absent = settings.model, missing()
    if absent and torch.version.cuda is not None:
        absent += " (`make setup EXTRAS=gpu`)"
    odd = [width for width in (m.n_embd, m.mlp_width) if width % MULTIPLE]
    return first_reason(
        (materialises(settings), "a mechanism needs the hidden state itself"),
        (bool(absent), absent),
        (settings.optim.mixed_precision == "fp32", "16-bit products (MIXED_PRECISION)"),
        (bool(odd), f"width {odd} is not a multiple of {MULTIPLE}"),
    )


def try_mlp(
    backend: str, settings: Settings, device: torch.device, batch: int
) -> trials.Trial:
    """Time a layer's MLP without mechanisms, then compare it with fp32 formulas."""
    m, kind = settings.model, DTYPES[settings.optim.mixed_precision]
    run = _runner(backend, settings)

    def seconds() -> float:
        leaves = _leaves(m, device, kind, batch * m.block_size)
        return trials.gradient_seconds(lambda: [run(*leaves)], leaves, device)

    def check() -> str:
        ours = _leaves(m, device, kind, batch * m.block_size)
        exact = [x.detach().float().requires_grad_() for x in ours]
        x, into, outof, *bias = exact
        mine = run(*ours)
        truth = through_gelu(x, into, bias[0] if bias else None, outof, "torch")
        weights, distance = trials.generic_weights([truth]), trials.Distance()
        distance.add(
            [mine, *trials.gradients([mine], weights, ours)],
            [truth, *trials.gradients([truth], weights, exact)],
        )
        return distance.problem(kind)

    return trials.run_trial(backend, seconds, check)


def warm_up(settings: Settings, device: torch.device, batch: int) -> None:
    """Compile what ``rank`` will time into the cache of compiled code: it then needs
    the device for itself for a short time."""
    if unsupported(settings, device):
        return
    m, kind = settings.model, DTYPES[settings.optim.mixed_precision]
    for backend in BACKENDS:
        with trials.tried():
            leaves = _leaves(m, device, kind, batch * m.block_size)
            out = _runner(backend, settings)(*leaves)
            torch.autograd.grad(out, leaves, torch.zeros_like(out))


def _runner(backend: str, settings: Settings) -> Callable[..., Tensor]:
    """An MLP without mechanisms, compiled as the model will be."""

    def call(
        x: Tensor, into: Tensor, outof: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        return through_gelu(x, into, bias, outof, backend)

    return compiled(call) if settings.resources.compile_model else call


def _leaves(
    m: Model, device: torch.device, kind: torch.dtype, rows: int
) -> list[Tensor]:
    """Input, both weights and, where there is one, the bias."""
    generator = torch.Generator(device).manual_seed(1)

    def draw(scale: float, *shape: int) -> Tensor:
        numbers = torch.randn(shape, generator=generator, device=device) * scale
        return numbers.to(kind).requires_grad_()

    width, inner = m.n_embd, m.mlp_width
    leaves = [draw(1.0, rows, width)]
    leaves += [draw(width**-0.5, inner, width), draw(inner**-0.5, width, inner)]
    return [*leaves, draw(1.0, inner)] if m.bias else leaves
