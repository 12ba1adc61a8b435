"""Initial weights as a function of (seed, parameter name), and nothing else.

Two steps that share a weight start from the same numbers bit for bit, whatever
else they own, on any device.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from gpt2.model.gpt import GPT
from gpt2.model.init_source import Start, copy_source
from gpt2.plan.jobs import Job
from gpt2.settings.schema import Settings

STD = 0.02  # Radford et al. 2019
FUSED = {"qkv": ("q", "k", "v")}


def initial_model(job: Job, settings: Settings | None = None) -> GPT:
    """The model that a job's training begins with, on the CPU.

    settings: the job's, at another size or with other kernels to build it with.
    """
    settings = settings or job.settings
    model = GPT(settings)
    start_parameters(model, settings, job.seed)
    return model


def start_parameters(model: GPT, settings: Settings, seed: int) -> Start | None:
    """Draw the parameters by the seed, and copy those that INIT_FROM has.

    Returns what was copied, None without INIT_FROM. Raises ValueError if its weights
    cannot be used.
    """
    init_parameters(model, seed)
    return copy_source(model, settings) if settings.data.init_sha256 else None


@torch.no_grad()
def init_parameters(model: nn.Module, seed: int) -> None:
    """Draw every matrix of ``model``; vectors keep what their module set.

    Matrices are normal with standard deviation 0.02, those that write to the
    residual stream 0.02 / sqrt(2 layers) as in GPT-2; biases of linear layers
    are 0. A fused matrix is drawn as its named parts.
    """
    layers = len(model.get_submodule("blocks"))  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            std = STD / (2 * layers) ** 0.5 if name.endswith("proj.weight") else STD
            _draw(name, parameter, seed, std)
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.zero_()
    for name, buffer in model.named_buffers():
        if name.endswith("basis"):
            normal = torch.randn(buffer.shape, generator=generator_for(seed, name))
            buffer.copy_(torch.linalg.qr(normal).Q)


def generator_for(seed: int, name: str) -> torch.Generator:
    """A CPU generator that depends on seed and name alone."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _draw(name: str, matrix: Tensor, seed: int, std: float) -> None:
    """Fill a matrix with normal numbers in fp32, by one generator for each logical
    name; in place if possible, as copies of them take as long as to draw them."""
    fits = matrix.dtype == torch.get_default_dtype() and matrix.is_contiguous()
    drawn = (
        matrix if fits and matrix.device.type == "cpu" else torch.empty(matrix.shape)
    )
    names = [name]
    for fused, parts in FUSED.items():
        if f".{fused}." in name:
            names = [name.replace(f".{fused}.", f".{part}.") for part in parts]
    for part, rows in zip(names, drawn.chunk(len(names)), strict=True):
        rows.normal_(generator=generator_for(seed, part))
    matrix.copy_(drawn.mul_(std))
