"""The formulas of a whole step, on every device and type."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch

from gpt2.mechanisms.ract.naive import row_statistics
from gpt2.model.reference.formulas import whole_trace
from gpt2.model.reference.measures import generic_sum
from gpt2.settings.schema import Settings
from tests.gpt2.helpers import (
    deviation,
    generic,
    leaves_of,
    tiny_model,
    tiny_step,
    tokens_of,
)

LENGTH = 6
RACT = {"ract": True, "ract_topk": 2}
CROSS = {"cross_token": True, "cross_topk": 2}
LATENT = {"attention": "mla", "latent_dim": 6}
# One of each kind of every mechanism, so that no branch of the formulas is left out.
FORMS: list[dict[str, Any]] = [
    {"ra": True, "ra_window": 2},
    {"ra": True, "ra_window": 0, "ra_learned_alpha": True},
    *(
        {**RACT, "ract_statistic": kind, "ract_head_average": average}
        for kind, average in product(("topk", "max", "entropy", "rms"), (False, True))
    ),
    {**RACT, "ract_placement": "weights", "ract_detach": True},
    {"mlp_gate": True},
    {"mlp_gate": True, "mlp_gate_pool": "prefix_mean"},
    *(
        {**CROSS, "cross_select": kind, "cross_renorm": renorm, "cross_tau": 0.8}
        for kind, renorm in product(("topk", "rms", "none"), (False, True))
    ),
    {**CROSS, "cross_topk": 9},
    *({**LATENT, "latent": kind} for kind in ("tied_transpose", "untied")),
    {**LATENT, "latent": "per_head_scalar"},
    {**LATENT, "ra": True, "mla_shared_k": True},
    {**LATENT, "mla_shared_v": True, "output_gate": True},
    {"attention": "mla_rope", "ra": True},
    {"bias": False},
]


def named(form: dict[str, Any]) -> str:
    return ",".join(f"{k}={v}" for k, v in form.items())


def statistic_of_row(row: torch.Tensor, kind: str, topk: int) -> torch.Tensor:
    """Of one row of weights, which holds its visible keys alone."""
    match kind:
        case "topk":
            return row.sort(descending=True).values[:topk].sum()
        case "max":
            return row.max()
        case "rms":
            return row.pow(2).mean().sqrt()
    return -(row * row.log()).sum() / math.log(max(2, len(row)))


@pytest.mark.parametrize("kind", ["topk", "max", "entropy", "rms"])
def test_statistics_of_all_rows_equal_those_of_each(kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(3, 7, 7, generator=generator, dtype=torch.float64)
    scores[0, 5, 2] = -1e4  # its weight is 0
    ahead = torch.ones(7, 7).triu(1).bool()
    slopes: list[torch.Tensor] = []
    found: list[torch.Tensor] = []
    for together in (True, False):
        leaf = scores.clone().requires_grad_()
        weights = leaf.masked_fill(ahead, -torch.inf).softmax(-1)
        if together:
            each = row_statistics(weights, kind, 3)
        else:
            rows = [
                statistic_of_row(w[i, : i + 1].clamp_min(1e-300), kind, 3)
                for w in weights
                for i in range(7)
            ]
            each = torch.stack(rows).view(3, 7)
        found.append(each.detach())
        slopes += torch.autograd.grad(generic_sum(each), leaf)
    assert deviation(*found) < 1e-12
    assert deviation(*slopes) < 1e-12 and slopes[0].abs().max() > 0


def traced(settings: Settings, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Parts and slopes of the logits, by weights of a type on a device."""
    model = generic(settings)
    leaves = {
        name: leaf.detach().to(device, dtype).requires_grad_()
        for name, leaf in leaves_of(model).items()
    }
    tokens = tokens_of(settings, 1, LENGTH)[0].to(device)
    trace = whole_trace(leaves, settings, tokens)
    wanted = [leaves[name] for name, _ in model.named_parameters()]
    slopes = torch.autograd.grad(generic_sum(trace["the logits"]), wanted)
    return [*trace.values(), *slopes]


@pytest.mark.parametrize("form", FORMS, ids=named)
def test_nothing_is_left_on_the_cpu(form: dict[str, Any]) -> None:
    """The meta device refuses tensors of another, as a GPU does."""
    found = traced(tiny_model(n_layer=2, **form), "meta", torch.float32)
    assert {x.device.type for x in found} == {"meta"}


@pytest.mark.parametrize("step", [16, 18, 28])
def test_fp32_is_that_of_float64_rounded(step: int) -> None:
    settings = tiny_step(step, n_layer=2)
    exact = traced(settings, "cpu", torch.float64)
    rounded = traced(settings, "cpu", torch.float32)
    assert {x.dtype for x in rounded} == {torch.float32}
    for one, other in zip(rounded, exact, strict=True):
        assert deviation(one.double(), other) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS, ids=named)
def test_on_a_gpu_as_on_a_cpu(form: dict[str, Any]) -> None:
    settings = tiny_model(n_layer=2, **form)
    pairs = zip(
        traced(settings, "cuda", torch.float64),
        traced(settings, "cpu", torch.float64),
        strict=True,
    )
    for one, other in pairs:
        assert deviation(one.cpu(), other) < 1e-10
