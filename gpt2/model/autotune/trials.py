"""Trials of backends that compute the same: whether one is right, and how fast it is.

Each is compared with a reference and timed at the size of the run, by the process of
gpt2/train/choose_kernels.py, so that neither a kernel that a device miscompiles nor one
that is slow there is chosen, and nothing of a trial is left in the process that trains.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.kernels.timing import seconds

# Relative to the norm; the products are in these types, fp32 ones perhaps in TF32.
TOLERANCE = {torch.float32: 5e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
REPEATS = 10  # on a CPU


@dataclass(frozen=True, slots=True)
class Trial:
    """One backend: seconds of forward and backward, or why it was dropped."""

    backend: str
    seconds: float
    problem: str = ""

    def __str__(self) -> str:
        return f"{self.backend} " + (self.problem or f"{self.seconds * 1e3:.2f} ms")


def run_trial(
    backend: str, seconds: Callable[[], float], check: Callable[[], str]
) -> Trial:
    """Time a backend, then compare it by ``check``, which says what differs.

    In this order, so that kernels are tuned for the size of the run.
    """
    try:
        spent = seconds()
        return Trial(backend, spent, check())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler raises: another backend will do
        text = str(error).splitlines() or [""]
        return Trial(backend, 0.0, f"failed ({type(error).__name__}: {text[0][:120]})")


@contextmanager
def tried() -> Iterator[None]:
    """Go on after what a compiler or a kernel raises: the trial itself reports it."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        print(f"not compiled ahead ({type(error).__name__})")


def ranked(trials: Sequence[Trial], otherwise: str) -> list[str]:
    """The backends without a problem, the fastest first; ``otherwise`` comes last."""
    right = sorted((t for t in trials if not t.problem), key=lambda t: t.seconds)
    names = [trial.backend for trial in right]
    return names if otherwise in names else [*names, otherwise]


def report(subject: str, trials: Sequence[Trial]) -> str:
    """A line for a log: each backend with its time or its problem."""
    return f"{subject}: " + ", ".join(map(str, trials))


class Distance:
    """Distances between results that come in parts, relative to the reference."""

    def __init__(self) -> None:
        self._squares: list[list[float]] = []

    def add(self, ours: Sequence[Tensor], truth: Sequence[Tensor]) -> None:
        """Count the tensors of one part of the batch, by either way."""
        for number, (a, b) in enumerate(zip(ours, truth, strict=True)):
            if number == len(self._squares):
                self._squares.append([0.0, 0.0])
            a, b = a.detach().float(), b.detach().float()
            self._squares[number][0] += (a - b).square().sum().item()
            self._squares[number][1] += b.square().sum().item()

    def problem(self, kind: torch.dtype) -> str:
        """The first result that differs by more than rounding in products of that
        type explains; empty: none."""
        for number, (apart, whole) in enumerate(self._squares):
            distance = (apart / whole) ** 0.5 if whole else apart
            if not distance <= TOLERANCE[kind]:
                return f"differs from the reference by {distance:.1e} (result {number})"
        return ""


def generic_weights(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Weights of a linear function of the outputs, all different."""
    return [
        torch.linspace(-1.0, 1.3, x.numel(), device=x.device).view_as(x)
        for x in outputs
    ]


def gradients(
    outputs: Sequence[Tensor], weights: Sequence[Tensor], leaves: Sequence[Tensor]
) -> list[Tensor]:
    """Gradients of the sum of the outputs times their weights."""
    total = torch.zeros((), device=leaves[0].device)
    for x, weight in zip(outputs, weights, strict=True):
        total = total + (x.float() * weight).sum()
    return list(torch.autograd.grad(total, leaves))


def gradient_seconds(
    run: Callable[[], Sequence[Tensor]], leaves: Sequence[Tensor], device: torch.device
) -> float:
    """Seconds of ``run`` and of the gradients of the leaves, once warm: on a GPU those
    of the kernels, without the gaps in which the host launches them."""
    grads = [torch.randn_like(x) for x in run()]

    def both() -> None:
        torch.autograd.grad(run(), leaves, grads)

    for _ in range(3):
        both()
    if device.type == "cuda":
        return seconds(both)
    start = time.perf_counter()
    for _ in range(REPEATS):
        both()
    return (time.perf_counter() - start) / REPEATS
