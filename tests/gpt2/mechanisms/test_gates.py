"""RA-CT and the MLP gate: initial values, causality, caches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gpt2.mechanisms.mlp_gate.layer import MlpGate
from gpt2.mechanisms.ract.layer import StatisticGate
from gpt2.model.backends.reference import row_statistic
from gpt2.model.context import DecodeCache
from gpt2.model.parts import mixed
from tests.gpt2.helpers import (
    deviation,
    normal,
    randomize,
    tiny_model,
)


def causal_weights(b: int, h: int, t: int) -> tuple[Tensor, Tensor]:
    """Logits, a leaf, and their softmax over the keys visible, [B, H, T, T].

    Gradients are compared at the logits: at the weights themselves they are
    arbitrary where a weight is fixed.
    """
    logits, hidden = normal(b, h, t, t), torch.ones(t, t).triu(1).bool()
    return logits, (2 * logits).masked_fill(hidden, float("-inf")).softmax(-1)


def test_a_detached_statistic_trains_the_gate_alone() -> None:
    for detach in (False, True):
        gate = StatisticGate(tiny_model(ract=True, ract_detach=detach)).double()
        randomize(gate)
        logits, weights = causal_weights(2, 4, 7)
        factor = gate(row_statistic(weights, gate.statistic))
        (through,) = torch.autograd.grad(
            factor.sum(), logits, allow_unused=True, retain_graph=True
        )
        assert (through is None) is detach
        own = torch.autograd.grad(factor.sum(), [gate.scale, gate.bias])
        assert all(g.abs().min() > 0 for g in own)


def test_gates_start_nearly_open() -> None:
    gate = StatisticGate(tiny_model(ract=True))
    assert torch.equal(gate.bias, torch.full((4,), 2.0))
    assert torch.equal(gate.scale, torch.ones(4))  # at 0 it would ignore its rows
    closed = gate(torch.zeros(1, 4, 1))
    assert torch.allclose(closed, 1 - 0.2 + 0.2 * torch.tensor(2.0).sigmoid())
    mlp = MlpGate(tiny_model(mlp_gate=True))
    assert torch.equal(mlp.bias, torch.full((4,), 2.0))


def test_mix_zero_is_one_bit_for_bit_and_mix_one_is_the_gate() -> None:
    gate = normal(100).detach().sigmoid()
    assert torch.equal(mixed(gate, 0.0), torch.ones_like(gate))
    assert deviation(mixed(gate, 1.0), gate) < 1e-15


@pytest.mark.parametrize("pool", ["token", "prefix_mean"])
def test_mlp_gate_does_not_see_the_future(pool: str) -> None:
    gate = MlpGate(tiny_model(mlp_gate=True, mlp_gate_pool=pool)).double()
    randomize(gate)
    hidden = normal(2, 13, 11).detach()
    whole = gate.make(hidden)
    for cut in (1, 6, 12):
        assert deviation(gate.make(hidden[:, :cut]), whole[:, :cut]) < 1e-14
        changed = torch.cat([hidden[:, :cut], hidden[:, cut:] + 1], 1)
        assert torch.equal(gate.make(changed)[:, :cut], whole[:, :cut])
        assert (gate.make(changed)[:, cut:] != whole[:, cut:]).all()


@pytest.mark.parametrize("pieces", [[1] * 7, [3, 4], [5, 1, 1]])
def test_prefix_mean_goes_on_from_its_cache(pieces: list[int]) -> None:
    gate = MlpGate(tiny_model(mlp_gate=True, mlp_gate_pool="prefix_mean")).double()
    randomize(gate)
    hidden = normal(2, 7, 11).detach()
    cache, position, parts = DecodeCache(1, 7), 0, []
    for length in pieces:
        part = hidden[:, position : position + length]
        cache.advance(length)
        parts.append(gate.make(part, cache.layers[0]))
        position += length
    assert deviation(torch.cat(parts, 1), gate.make(hidden)) < 1e-14
    assert cache.numbers == 2 * 3, "one running sum of the gate's width a sequence"


def test_prefix_mean_keeps_its_sum_in_fp32_under_autocast() -> None:
    gate = MlpGate(tiny_model(mlp_gate=True, mlp_gate_pool="prefix_mean"))
    randomize(gate)
    hidden = normal(1, 16, 11, dtype=torch.float32).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = gate.make(hidden)
    assert deviation(rounded.float(), gate.make(hidden)) < 0.02
