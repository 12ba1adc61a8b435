"""Tiny settings and models, made from the real Kconfig without any file of the user."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from gpt2.model.gpt import GPT
from gpt2.model.init import init_parameters
from gpt2.model.reference.formulas import whole_trace
from gpt2.plan.jobs import Job, Plan
from gpt2.plan.planning import make_plan, step_settings
from gpt2.settings.configuration import strict_kconfig
from gpt2.settings.parse import settings_from
from gpt2.settings.schema import Settings
from lib.kconfig.config_py import Config

KCONFIG = Path(__file__).resolve().parents[2] / "Kconfig"

# Small, odd, and with an attention width (4 x 3) that is not the embedding's, so
# that a transposed or confused dimension cannot go unnoticed.
TINY = {
    "GPT2_MODEL_CUSTOM": "y",
    "GPT2_N_LAYER": "3",
    "GPT2_N_HEAD": "4",
    "GPT2_N_EMBD": "10",
    "GPT2_HEAD_DIM": "3",
    "GPT2_BLOCK_SIZE": "16",
    "GPT2_TOKENIZER_BYTES": "y",
    "RA_MLA_ABLATION_MODE": "y",
    "RA_MLA_LATENT_DIM": "6",
    "RA_MLA_JOINT_LATENT_DIM": "7",
    "RA_MLA_ROPE_DIM": "4",
    "RA_MLA_RA_WINDOW": "2",
    "RA_MLA_RACT_TOPK": "3",
    "RA_MLA_CROSS_TOPK": "3",
    "DEVICE": "cpu",
    "MIXED_PRECISION": "n",
}


def make_config(**symbols: str) -> Config:
    """The Kconfig defaults with symbols (aliases allowed) from the command line."""
    return strict_kconfig().load([], [f"{k}={v}" for k, v in symbols.items()])


def tiny_plan(**symbols: str) -> Plan:
    """Plan of TINY; symbols may replace its own."""
    return make_plan(make_config(**{**TINY, **symbols}))


def tiny_job(**symbols: str) -> Job:
    return tiny_plan(**{"STEPS": "16", "SEEDS": "1", **symbols}).jobs[0]


@cache
def full_size() -> Settings:
    """GPT-2 124M, as Kconfig has it."""
    return settings_from(make_config(RA_MLA_ABLATION_MODE="y"))


@cache
def _tiny() -> Settings:
    return settings_from(make_config(**TINY))


def tiny(**fields: object) -> Settings:
    """TINY with fields of the schema changed; 0 for a width still means: derive it."""
    return _tiny().replace(**fields)


def tiny_step(step: int, **fields: object) -> Settings:
    """A step over TINY, resolved; ``fields`` change the base it is laid over."""
    return step_settings(tiny(**fields), step)


def tiny_model(**fields: object) -> Settings:
    """One model with the mechanisms given, MLP width 11 and small mechanism widths."""
    widths = {"mlp_width": 11, "mlp_gate_dim": 3, "cross_rank": 2}
    return tiny(**{**widths, **fields})


@torch.no_grad()
def randomize(module: nn.Module, seed: int = 0, std: float = 0.4) -> None:
    """A generic point: every parameter random, biases, norms and alphas included.

    Fixed buffers keep what their module or its initialization set.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.copy_(noise * std + (1.0 if parameter.ndim == 1 else 0.0))


def generic(
    settings: Settings, seed: int = 0, dtype: torch.dtype = torch.float64
) -> GPT:
    """A GPT of ``settings`` at a generic point, in evaluation mode."""
    model = GPT(settings)
    init_parameters(model, seed)
    model.to(dtype)
    randomize(model, seed)
    return model.eval()


def tokens_of(settings: Settings, batch: int, length: int, seed: int = 0) -> Tensor:
    """Token ids [batch, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(settings.vocab_size, (batch, length), generator=generator)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers that may be differentiated by."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
    return numbers.to(dtype).requires_grad_()


# ---- comparisons ----------------------------------------------------------------


def leaves_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies of parameters and buffers by name, for the reference to work with."""
    leaves = {n: p.detach().clone() for n, p in module.state_dict().items()}
    return {n: p.requires_grad_() for n, p in leaves.items()}


def naive_logits(leaves: Mapping[str, Tensor], settings: Settings, tokens: Tensor):
    """Logits [B, T, V] by the formulas."""
    rows = [whole_trace(leaves, settings, row)["the logits"] for row in tokens]
    return torch.stack(rows)


def deviation(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest number where that is above 1."""
    assert a.shape == b.shape, f"{tuple(a.shape)} is not {tuple(b.shape)}"
    return float((a - b).detach().abs().max() / b.detach().abs().max().clamp_min(1.0))


def gradients_of(
    outputs: Iterable[Tensor], inputs: Sequence[Tensor], seed: int = 0
) -> tuple[Tensor, ...]:
    """Gradients of one random linear functional of all outputs."""
    total = torch.zeros((), dtype=torch.float64)
    for number, output in enumerate(outputs):
        weights = normal(*output.shape, seed=seed + number).detach()
        total = total + (output.double() * weights).sum()
    return torch.autograd.grad(total, inputs, retain_graph=True)


def assert_agree(
    ours: Sequence[Tensor],
    our_leaves: Sequence[Tensor],
    theirs: Sequence[Tensor],
    their_leaves: Sequence[Tensor],
    tolerance: float,
    their_gradients: Sequence[Tensor] | None = None,
) -> None:
    """Outputs and the gradients of all leaves are equal, and none of them is zero.

    their_gradients: gradients_of(theirs), where several use the same loops.
    """
    assert len(ours) == len(theirs)
    for n, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert deviation(a, b) <= tolerance, f"output {n}: {deviation(a, b):.1e}"
    if their_gradients is None:
        their_gradients = gradients_of(theirs, their_leaves)
    pairs = zip(gradients_of(ours, our_leaves), their_gradients, strict=True)
    for n, (a, b) in enumerate(pairs):
        assert b.abs().max() > 0, f"gradient {n} is zero: nothing is compared"
        assert deviation(a, b) <= tolerance, f"gradient {n}: {deviation(a, b):.1e}"
