"""Trials of paths that compute the same thing: is one right, and how fast is it?

Each is compared with a reference and timed at the size of the run, so that neither a
kernel that a device miscompiles nor one that is slow there is ever trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Relative to the norm; the products are in these types, fp32 ones perhaps in TF32.
TOLERANCE = {torch.float32: 5e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
REPEATS = 10


@dataclass(frozen=True, slots=True)
class Trial:
    """One path: seconds of forward and backward, or why it was dropped."""

    path: str
    seconds: float
    problem: str = ""

    def __str__(self) -> str:
        return f"{self.path} " + (self.problem or f"{self.seconds * 1e3:.2f} ms")


def attempt(path: str, seconds: Callable[[], float], check: Callable[[], str]) -> Trial:
    """Time a path, then compare it by ``check``, which says what differs.

    In this order, so that kernels are tuned for the size of the run.
    """
    try:
        spent = seconds()
        return Trial(path, spent, check())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler throws: another path will do
        text = str(error).splitlines() or [""]
        return Trial(path, 0.0, f"failed ({type(error).__name__}: {text[0][:120]})")


def fastest(trials: Sequence[Trial], otherwise: str) -> str:
    """The fastest path without a problem; ``otherwise`` if there is none."""
    right = [trial for trial in trials if not trial.problem]
    return min(right, key=lambda t: t.seconds).path if right else otherwise


def told(subject: str, trials: Sequence[Trial]) -> str:
    """For a log: each path with its time or its problem."""
    return f"{subject}: " + ", ".join(map(str, trials))


def difference(
    ours: Sequence[Tensor], truth: Sequence[Tensor], kind: torch.dtype
) -> str:
    """What differs from the reference by more than rounding in products of that
    type; empty: nothing."""
    for number, (a, b) in enumerate(zip(ours, truth, strict=True)):
        distance = ((a - b).float().norm() / b.float().norm()).item()
        if not distance <= TOLERANCE[kind]:
            return f"differs from the reference by {distance:.1e} (result {number})"
    return ""


def with_gradients(outputs: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    """The outputs, and the gradients of a generic linear function of them."""
    total = torch.zeros((), device=leaves[0].device)
    for x in outputs:
        weights = torch.linspace(-1.0, 1.3, x.numel(), device=x.device)
        total = total + (x.float() * weights.view_as(x)).sum()
    return [*outputs, *torch.autograd.grad(total, leaves)]


def kernel_seconds(step: Callable[[], object], device: torch.device) -> float:
    """Summed time of the GPU's kernels in a warm call; gaps in which the host
    launches are not part of it. Of a CPU, its own time."""
    on_gpu = device.type == "cuda"
    activity = torch.profiler.ProfilerActivity
    kinds = [activity.CUDA if on_gpu else activity.CPU]
    for _ in range(3):
        step()
    _wait(device)
    with torch.profiler.profile(activities=kinds) as profile:
        for _ in range(REPEATS):
            step()
        _wait(device)
    spent = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    total = sum(getattr(event, spent) for event in profile.key_averages())
    return total / REPEATS / 1e6


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
