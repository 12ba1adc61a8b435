"""`auto` on a GPU: try the paths that could serve, keep the fastest right one.

Each is compared with the reference (output, statistic, mean weights and the
gradients of q, k and v) and timed at the size of the run, so that neither a kernel
that a device miscompiles nor one that is slow there is ever trained with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2.attend.request import Place, fallbacks, place_of, refusal, requests_of
from gpt2.attention import CausalAttention, Heads
from gpt2.block import RA_MLA_Block
from gpt2.schema import Settings

# In this order. Wherever triton serves too, flex took twice its time (H100, torch
# 2.11) and compiles for long: it is tried where no other path is right.
CANDIDATES = ("sdpa", "triton", "flex")
CHECKED_LENGTH = 277  # odd, and more than two tiles
# Relative to the norm; the products are in these types, fp32 ones perhaps in TF32.
TOLERANCE = {torch.float32: 5e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
REPEATS = 10

Weigh = Callable[[Heads], tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Trial:
    """One path: seconds of forward and backward, or why it was dropped."""

    path: str
    seconds: float
    problem: str = ""

    def __str__(self) -> str:
        return f"{self.path} " + (self.problem or f"{self.seconds * 1e3:.2f} ms")


def choose(settings: Settings, device: torch.device, batch: int) -> tuple[str, str]:
    """The value of attention_backend to build the model with, and what to tell of
    it (empty: nothing).

    Trials happen on GPUs alone, and only where there is something to choose.
    """
    place = place_of(device.type, settings.resources.compile_model)
    backend = settings.resources.attention_backend
    if backend != "auto" or not device.type == "cuda":
        return backend, "\n".join(fallbacks(settings, place))
    able = candidates(settings, place)
    if not able:
        return "reference", ""
    trials: list[Trial] = []
    for path in able:
        if path != "flex" or fastest(trials) == "reference":
            trials.append(attempt(path, settings, device, batch))
    return fastest(trials), "attention: " + ", ".join(map(str, trials))


def candidates(settings: Settings, place: Place) -> list[str]:
    """The paths that serve every call of a layer."""
    requests = requests_of(settings)
    return [
        path
        for path in CANDIDATES
        if not any(refusal(path, request, place) for request in requests)
    ]


def fastest(trials: list[Trial]) -> str:
    """The fastest path without a problem; the reference if there is none."""
    right = [trial for trial in trials if not trial.problem]
    return min(right, key=lambda t: t.seconds).path if right else "reference"


def attempt(path: str, settings: Settings, device: torch.device, batch: int) -> Trial:
    """Time a path, then compare it with the reference.

    In this order, so that kernels are tuned for the size of the run.
    """
    try:
        ours = _weigher(path, settings, device)
        truth = _weigher("reference", settings, device)
        seconds = kernel_seconds(ours, settings, device, batch)
        return Trial(path, seconds, compare(ours, truth, settings, device))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler throws: another path will do
        text = str(error).splitlines() or [""]
        return Trial(path, 0.0, f"failed ({type(error).__name__}: {text[0][:120]})")


def _weigher(path: str, settings: Settings, device: torch.device) -> Weigh:
    """A layer's attention without projections, compiled as the model will be."""
    torch.manual_seed(0)
    chosen = settings.replace(attention_backend=path, dropout=0.0)
    layer: CausalAttention = RA_MLA_Block(chosen, 0).to(device).attn
    if layer.reciprocity is not None and layer.reciprocity.alpha is not None:
        with torch.no_grad():  # learned weights start at 0, where nothing shows
            layer.reciprocity.alpha.fill_(0.3)

    def weigh(heads: Heads) -> tuple[Tensor, ...]:
        found = layer.weigh(heads)
        return tuple(x for x in found if x is not None)

    compiled = settings.resources.compile_model and path != "reference"
    return torch.compile(weigh, dynamic=False) if compiled else weigh


def inputs(
    settings: Settings, device: torch.device, batch: int, length: int
) -> tuple[Heads, list[Tensor]]:
    """Random heads, laid out as a projection leaves them, and their leaves."""
    request, heads = requests_of(settings)[-1], settings.model.n_head
    generator = torch.Generator(device).manual_seed(1)

    def draw(width: int) -> Tensor:
        shape = (batch, length, heads, width)
        numbers = torch.randn(shape, generator=generator, device=device)
        return numbers.to(request.dtype).requires_grad_()

    leaves = [draw(width) for width in (request.widths[0], *request.widths)]
    q, k, v = (leaf.transpose(1, 2) for leaf in leaves)
    return Heads(q, k, v, q, k), leaves


def compare(
    ours: Weigh, theirs: Weigh, settings: Settings, device: torch.device
) -> str:
    """What differs from the reference by more than rounding; empty: nothing."""
    length = min(CHECKED_LENGTH, settings.model.block_size)
    tolerance = TOLERANCE[requests_of(settings)[-1].dtype]
    found = []
    for weigh in (ours, theirs):
        heads, leaves = inputs(settings, device, 2, length)
        outputs = weigh(heads)
        total = sum((_project(x) for x in outputs), torch.zeros((), device=device))
        found.append([*outputs, *torch.autograd.grad(total, leaves)])
    for number, (a, b) in enumerate(zip(*found, strict=True)):
        distance = ((a - b).float().norm() / b.float().norm()).item()
        if not distance <= tolerance:
            return f"differs from the reference by {distance:.1e} (result {number})"
    return ""


def _project(x: Tensor) -> Tensor:
    """A generic linear function of a tensor."""
    weights = torch.linspace(-1.0, 1.3, x.numel(), device=x.device)
    return (x.float() * weights.view_as(x)).sum()


def kernel_seconds(
    weigh: Weigh, settings: Settings, device: torch.device, batch: int
) -> float:
    """Summed time of the GPU's kernels in a forward and a backward pass at the size
    of the run; gaps in which the host launches are not part of it."""
    step = _step(weigh, settings, device, batch)
    on_gpu = device.type == "cuda"
    activity = torch.profiler.ProfilerActivity
    kinds = [activity.CUDA if on_gpu else activity.CPU]
    with torch.profiler.profile(activities=kinds) as profile:
        for _ in range(REPEATS):
            step()
        _wait(device)
    spent = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    total = sum(getattr(event, spent) for event in profile.key_averages())
    return total / REPEATS / 1e6


def _step(
    weigh: Weigh, settings: Settings, device: torch.device, batch: int
) -> Callable[[], None]:
    """A warm forward and backward pass."""
    heads, leaves = inputs(settings, device, batch, settings.model.block_size)
    slopes = [torch.randn_like(x) for x in weigh(heads)]

    def step() -> None:
        torch.autograd.grad(weigh(heads), leaves, slopes)

    for _ in range(3):
        step()
    _wait(device)
    return step


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
