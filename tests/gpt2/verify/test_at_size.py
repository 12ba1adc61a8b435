"""Limits written into the code that tiny sizes never reach are seen at size."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import pytest
import torch

from gpt2.mechanisms.cross_token.layer import CrossToken
from gpt2.mechanisms.mla_rope import layer as rope_layer
from gpt2.mechanisms.mlp_gate.layer import GatedByMlp
from gpt2.mechanisms.ra.layer import Reciprocity
from gpt2.mechanisms.ract.layer import StatisticGate
from gpt2.model import gpt as model
from gpt2.model.backends import reference
from gpt2.plan.jobs import Plan
from gpt2.plan.planning import plan_settings
from gpt2.verify.certificates import at_size, formula
from gpt2.verify.certify_steps import LARGER, certify_plan, subjects
from gpt2.verify.subject import Finding, Subject
from tests.gpt2.helpers import full_size


def plan_of(step: int, **fields: Any) -> Plan:
    asked = full_size().replace(mode="ablation", steps=(step,), seeds=(1,), **fields)
    return plan_settings(asked, {})


@cache
def subject(step: int) -> Subject:
    """Three layers do for faults that every layer has, and are soon computed."""
    (found,) = subjects(plan_of(step, n_layer=3)).values()
    return found


RECIPROCITY = Reciprocity.__init__
STATISTIC = StatisticGate.__init__
CROSS = CrossToken.__init__
GATE = GatedByMlp.gate_heads
WEIGHTS = reference._weights


def one_place_beyond_255(self, tokens, position=0):
    where = torch.arange(position, position + tokens.shape[1]).clamp(max=255)
    return self.wte(tokens) + self.wpe(where)


def band_of_16(self, settings):
    RECIPROCITY(self, settings)
    self.window = min(self.window, 16)


def sum_of_4(self, settings):
    STATISTIC(self, settings)
    at_most = min(self.statistic.topk, 4)
    self.statistic = dataclasses.replace(self.statistic, topk=at_most)


def base_1000(length, width):
    rates = 1000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.outer(torch.arange(length, dtype=torch.float64), rates).float()


def keeps_at_most_4(self, settings, produces):
    CROSS(self, settings, produces)
    self.topk = min(self.topk, 4)


def gates_of_8_heads(self, out, attended, given):
    gates = torch.cat([given[..., :8], given[..., 7:8].expand_as(given[..., 8:])], -1)
    return GATE(self, out, attended, gates)


def sees_256_keys(q, k, *rest):
    weights = WEIGHTS(q, k, *rest)
    return weights.tril().triu(-255) / weights.triu(-255).sum(-1, keepdim=True)


FAULTS: list[tuple[int, Any, str, Any, str]] = [
    (0, model.GPT, "embed", one_place_beyond_255, "the attention of block 0"),
    (5, Reciprocity, "__init__", band_of_16, "the attention of block 0"),
    (17, StatisticGate, "__init__", sum_of_4, "the attention of block 0"),
    (28, rope_layer, "rope_angles", base_1000, "the attention of block 0"),
    (22, CrossToken, "__init__", keeps_at_most_4, "the MLP of block 0"),
    (3, GatedByMlp, "gate_heads", gates_of_8_heads, "the attention of block 1"),
    (13, reference, "_weights", sees_256_keys, "the attention of block 0"),
]


def message(finding: Finding) -> str:
    assert not finding.passed, finding
    return finding.detail


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[3].__name__)
def test_a_limit_of_size_is_seen_at_size_alone(monkeypatch, fault) -> None:
    step, place, name, wrong, where = fault
    monkeypatch.setattr(place, name, wrong)
    assert formula(subject(step)).passed
    assert message(at_size(subject(step))).startswith(where)


@pytest.mark.parametrize("step", sorted({fault[0] for fault in FAULTS}))
def test_steps_without_a_fault_equal_their_formulas(step: int) -> None:
    assert at_size(subject(step)).passed


def test_the_size_is_that_of_the_run_where_that_is_smaller() -> None:
    (small,) = subjects(plan_of(0, n_layer=2, n_embd=128, block_size=64)).values()
    assert small.larger is not None
    (large,) = subjects(plan_of(0)).values()
    model, most = small.larger.model, large.larger.model
    assert (model.n_layer, model.n_head, model.n_embd, model.block_size) == (
        *(2, 12, 128, 64),
    )
    assert {name: getattr(most, name) for name in LARGER} == LARGER


def test_it_is_a_column_of_the_table(monkeypatch) -> None:
    monkeypatch.setattr(Reciprocity, "__init__", band_of_16)
    (cell,) = certify_plan(
        plan_of(5, n_layer=2, n_embd=48, block_size=60, ra_window=20)
    )
    assert list(cell.findings).index("at size") == 8
    assert cell.message.startswith("at size: the attention of block 0 deviates by")
