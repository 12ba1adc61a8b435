"""Certificate "as trained": what trains gives the gradients of the plain formulas.

In the process and on the device that train, after kernels were chosen, compiled and
recorded, real sequences go through the very callable that trains: all micro steps of
an update, the replay of a graph and the average over ranks included. Loss and gradient
of every parameter are compared with the formulas of gpt2/proofs/whole.py in fp32 (on a
CPU in float64), one sequence at a time.

Why: checks of kernels in isolation passed while a plan that cuDNN had kept from one of
them made each gradient of a training wrong (relative error 1.41; H200, torch 2.11).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from gpt2.model import GPT
from gpt2.proofs.whole import whole_loss
from gpt2.schema import Settings
from gpt2.training.data import Batch, gather
from gpt2.training.failures import is_out_of_memory
from gpt2.training.material import Material
from gpt2.training.update import Updater
from lib import device as devices

# Largest relative deviation of a gradient that rounding explains, by the type of the
# products. In bf16, whose numbers are 4e-3 apart, gradients of 124M models deviate by
# 0.006 to 0.018 (H200, torch 2.11); the wrong ones that this is for, by 0.1 and more.
TOLERANCE = {"cpu": 1e-4, "fp32": 1e-2, "bf16": 0.06, "fp16": 0.02}
LOSS_TOLERANCE = {"cpu": 1e-6, "fp32": 1e-3, "bf16": 2e-3, "fp16": 1e-3}
# A parameter of which hardly any gradient is left is measured against a share of what
# the average parameter has: sums that cancel in exact arithmetic leave only rounding.
FLOOR = 1e-3
WRONG = 1e9  # instead of what is not finite
SEQUENCES = {"cpu": 2, "gpu": 8}  # different ones; they fill the micro batches by turns
LATER = (20, 200)  # updates after which the proof is repeated


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Deviations from the formulas at one update, relative to them. note: how the
    check was made, if not as usual."""

    step: int
    loss: float
    gradients: Mapping[str, float]
    tolerance: float
    loss_tolerance: float
    seconds: float
    note: str = ""

    @property
    def worst(self) -> tuple[str, float]:
        """The parameter with the largest deviation, and that."""
        return max(self.gradients.items(), key=lambda item: item[1])

    @property
    def passed(self) -> bool:
        within = all(d <= self.tolerance for d in self.gradients.values())
        return within and self.loss <= self.loss_tolerance

    def describe(self) -> str:
        """A line for the log."""
        name, worst = self.worst
        verdict = "as the formulas" if self.passed else "NOT AS THE FORMULAS"
        note = f", {self.note}" if self.note else ""
        return (
            f"as trained at update {self.step}: {verdict}; gradients deviate by at "
            f"most {worst:.1e} ({name}; allowed {self.tolerance:.0e}), the loss by "
            f"{self.loss:.1e} ({self.seconds:.1f} s{note})"
        )

    def record(self) -> dict[str, Any]:
        """For metrics.jsonl and the manifest."""
        name, worst = self.worst
        return {
            "step": self.step,
            "passed": self.passed,
            "worst": worst,
            "parameter": name,
            "loss_deviation": self.loss,
            "tolerance": self.tolerance,
            "loss_tolerance": self.loss_tolerance,
            "seconds": self.seconds,
            "note": self.note,
            "deviations": {n: float(f"{d:.3g}") for n, d in self.gradients.items()},
        }


def compare(
    updater: Updater, model: GPT, settings: Settings, material: Material, step: int
) -> Comparison:
    """Compare an update's loss and gradients with the formulas; nothing changes.

    settings: of the run. With several ranks each compares its averaged gradients with
    the average of the formulas' over all ranks.
    """
    began, device = perf_counter(), material.device
    random = devices.random_state(device)
    with devices.peak_memory_kept(device), _without_dropout(model, updater) as note:
        loss, gradients = _deviations(updater, model, settings, material, step)
    devices.set_random_state(device, random)
    precision = settings.optim.mixed_precision
    exact = not device.is_gpu and precision == "fp32"
    kind = "cpu" if exact else precision
    return Comparison(
        step=step,
        loss=loss,
        gradients=gradients,
        tolerance=TOLERANCE[kind],
        loss_tolerance=LOSS_TOLERANCE[kind],
        seconds=perf_counter() - began,
        note=note,
    )


@contextmanager
def _without_dropout(model: GPT, updater: Updater) -> Iterator[str]:
    """Dropout, which no formula can follow, switched off; compiled code follows, a
    recorded graph cannot and is left aside. Gives the note that says so."""
    layers = [m for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    if not layers:
        yield ""
        return
    kept, recorded = [layer.p for layer in layers], updater.micro_step
    attention = [block.attn for block in model.layers()]
    kept_of_attention = [part.dropout_p for part in attention]
    try:
        updater.micro_step = updater.plain_step
        for layer in layers:
            layer.p = 0.0
        for part in attention:
            part.dropout_p = 0.0
        yield "without dropout" + ("" if recorded is updater.plain_step else ", graph")
    finally:
        updater.micro_step = recorded
        for layer, p in zip(layers, kept, strict=True):
            layer.p = p
        for part, p in zip(attention, kept_of_attention, strict=True):
            part.dropout_p = p


@dataclass(frozen=True, slots=True)
class _Sample:
    """Different sequences [N, T] on the device, and which of them each micro step
    takes: rows [accumulation, micro batch]. The first takes all of them; the others
    differ, so that a step that reads another's tokens is seen."""

    tokens: Tensor
    targets: Tensor
    rows: Tensor

    @classmethod
    def draw(cls, settings: Settings, material: Material, step: int) -> _Sample:
        split, train, length = material.split, material.train, settings.model.block_size
        most = SEQUENCES["gpu" if material.device.is_gpu else "cpu"]
        count = min(split.micro_batch, most)
        generator = torch.Generator().manual_seed(step * split.world_size + split.rank)
        starts = torch.randint(
            train.tokens.size - length, (count,), generator=generator
        )
        tokens, targets = gather(train.tokens, starts.numpy(), length)
        shape = (split.accumulation, split.micro_batch)
        rows = torch.randint(count, shape, generator=generator)
        rows[0] = torch.arange(split.micro_batch) % count
        device = material.device.torch_device
        return cls(tokens.to(device), targets.to(device), rows.to(device))

    def micro_batches(self) -> Iterator[Batch]:
        """One update's, as the trainer's loader gives them."""
        for rows in self.rows:
            yield self.tokens[rows], self.targets[rows]

    def shares(self) -> list[float]:
        """Of the update's mean loss, what each sequence has."""
        counts = torch.bincount(self.rows.flatten(), minlength=len(self.tokens))
        return (counts / self.rows.numel()).tolist()


def _deviations(
    updater: Updater, model: GPT, settings: Settings, material: Material, step: int
) -> tuple[float, dict[str, float]]:
    """Relative deviation of the loss, and of the gradient of each parameter."""
    sample, ranks = _Sample.draw(settings, material, step), material.ranks
    loss, scale = _accumulate(updater, sample)
    try:
        formulas = _by_formulas(model, settings, sample, material.device.torch_device)
    except Exception as error:
        if not (is_out_of_memory(error) and material.device.is_gpu):
            raise
        torch.cuda.empty_cache()
        formulas = _by_formulas(model, settings, sample, torch.device("cpu"))
    true_loss, slopes = formulas
    true_loss = ranks.mean(true_loss.to(loss.device))
    found, named = {}, dict(model.named_parameters())
    slopes = {n: ranks.mean(x.to(named[n].device)) for n, x in slopes.items()}
    numbers = sum(x.numel() for x in slopes.values())
    mean_square = sum(x.square().sum().item() for x in slopes.values()) / numbers
    for name, parameter in named.items():
        truth = slopes[name]
        given = parameter.grad
        mine = torch.zeros_like(truth) if given is None else given.to(truth) / scale
        least = FLOOR * (mean_square * truth.numel()) ** 0.5
        size = max(truth.norm().item(), least)
        found[name] = _finite((mine - truth).norm().item() / size if size else 0.0)
    updater.optimizer.zero_grad(set_to_none=True)
    apart = (loss.to(true_loss) - true_loss).abs() / true_loss.abs()
    return _finite(apart.item()), found


def _finite(deviation: float) -> float:
    """As it is, or a number far above every tolerance, which JSON can hold."""
    return deviation if deviation < WRONG else WRONG


def _accumulate(updater: Updater, sample: _Sample) -> tuple[Tensor, float]:
    """Loss and .grad of an update by the callable that trains, and the loss scale that
    the gradients carry: for fp16 one at which they are finite."""
    scaler = updater.scaler
    before = scaler.get_scale()
    loss, scale = updater.accumulate(sample.micro_batches()), before
    while scaler.is_enabled() and scale > 1.0 and not _is_finite(updater):
        scale /= 16.0
        scaler.update(scale)
        updater.optimizer.zero_grad(set_to_none=True)
        loss = updater.accumulate(sample.micro_batches())
    if scaler.is_enabled():
        scaler.update(before)
    return loss, scale


def _is_finite(updater: Updater) -> bool:
    slopes = [p.grad for p in updater.parameters if p.grad is not None]
    return bool(torch.stack([torch.isfinite(x).all() for x in slopes]).all())


def _by_formulas(
    model: GPT, settings: Settings, sample: _Sample, device: torch.device
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean loss and gradients over an update, by the formulas on that device."""
    kind = torch.float64 if not sample.tokens.is_cuda else torch.float32
    leaves = {
        name: p.detach().to(device, kind).requires_grad_()
        for name, p in model.named_parameters()
    }
    buffers = {name: x.to(device, kind) for name, x in model.named_buffers()}
    total = torch.zeros((), dtype=kind, device=device)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # no TF32
    try:
        for row, share in enumerate(sample.shares()):
            tokens, targets = (
                x[row].to(device) for x in (sample.tokens, sample.targets)
            )
            loss = whole_loss(buffers | leaves, settings, tokens, targets) * share
            loss.backward()
            total += loss.detach()
    finally:
        torch.set_float32_matmul_precision(precision)
    nothing = torch.zeros_like
    return total, {
        n: x.grad if x.grad is not None else nothing(x) for n, x in leaves.items()
    }
