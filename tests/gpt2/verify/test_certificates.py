"""Planted faults: each certificate catches what it is there for, and only that.

A fault is planted by patching the real code and building a real model with it.
"""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch
import torch.nn.functional as F

from gpt2.mechanisms.latent.layer import LatentExchange
from gpt2.mechanisms.mla_rope import layer as rope_layer
from gpt2.mechanisms.mlp_gate.layer import GatedByMlp, MlpGate
from gpt2.mechanisms.needs import WHOLE_CONTEXT
from gpt2.mechanisms.ra.layer import Reciprocity
from gpt2.model import block, gpt, kept_weights, mlp
from gpt2.model.backends import reference
from gpt2.model.low_rank_hidden import read
from gpt2.plan.jobs import Plan
from gpt2.plan.planning import plan_settings
from gpt2.plan.steps import STEPS
from gpt2.settings.schema import Settings
from gpt2.train import build_optimizer as optimize
from gpt2.verify import certify_steps
from gpt2.verify.certificates import budgets, certify, formula
from gpt2.verify.certify_steps import (
    COLUMNS,
    NO_FINDING,
    FindingsCache,
    certify_plan,
    shrink,
    subjects,
)
from gpt2.verify.subject import Subject
from lib.forked import forked
from tests.gpt2.helpers import full_size
from tests.gpt2.tinytraining import server

ALL = tuple(STEPS)


def plan_of(base: Settings, *steps: int) -> Plan:
    return plan_settings(base.replace(mode="ablation", steps=steps, seeds=(1,)), {})


@pytest.fixture(scope="module")
def base() -> Settings:
    """Kconfig's defaults: the 124M model."""
    return full_size()


def subject_of(base: Settings, step: int, **size: int) -> Subject:
    (subject,) = subjects(plan_of(base, step), **size).values()
    return dataclasses.replace(subject, larger=None)  # seen in test_at_size.py


def failures(subject: Subject) -> dict[str, str]:
    """Reasons by certificate. A planted fault that itself crashes shows nothing."""
    found = {n: f.detail for n, f in certify(subject).items() if not f.passed}
    broken = ("AttributeError", "NameError", "TypeError")
    assert not any(text.startswith(broken) for text in found.values()), found
    return found


def mean_over_all(self, hidden, cache=None):
    low = read(hidden, "gate", self.down.weight)
    low = low.mean(1, keepdim=True).expand_as(low)
    return torch.sigmoid(self.up(low) + self.bias)


def test_gate_averaging_over_all_tokens_is_not_causal(base, monkeypatch):
    monkeypatch.setattr(MlpGate, "make", mean_over_all)
    found = failures(subject_of(base, 3))
    assert "moves earlier logits" in found["causal"]


def test_rms_over_the_whole_length_is_not_causal(base, monkeypatch):
    true = reference.row_statistic

    def over_total(weights, statistic):
        visible = torch.arange(1, weights.shape[-2] + 1, dtype=weights.dtype)
        right = true(weights, statistic)
        return right * (visible / weights.shape[-1]).sqrt()

    monkeypatch.setattr(reference, "row_statistic", over_total)
    found = failures(subject_of(base, 24))
    assert "cutting after" in found["causal"]
    assert "the attention of block 0" in found["formula"]


def mask(shift: int = 0, inverted: bool = False):
    def weights(q, k, scale, transposed, row_scale):
        rows, columns = q.shape[2], k.shape[2]
        distance = reference.row_positions(rows, columns, q.device) - torch.arange(
            columns
        )
        hidden = distance > 0 if inverted else distance < shift
        scores = q @ k.transpose(-1, -2) * scale
        return scores.masked_fill(hidden, -1e9).softmax(-1)

    return weights


@pytest.mark.parametrize("fault", [mask(inverted=True), mask(shift=-1)])
def test_wrong_masks_are_not_causal(base, monkeypatch, fault):
    monkeypatch.setattr(reference, "_weights", fault)
    found = failures(subject_of(base, 13))
    assert "causal" in found and "formula" in found


def test_mask_that_hides_the_present_token_is_no_attention(base, monkeypatch):
    monkeypatch.setattr(reference, "_weights", mask(shift=1))
    assert "formula" in failures(subject_of(base, 13))


def test_context_kept_on_the_module_is_state(base, monkeypatch):
    true = block.RA_MLA_Block.forward

    def stale(self, x, *, ctx, cache=None):
        """Reads what its predecessor handed on in the batch before."""
        kept = getattr(self, "kept", {})
        self.kept = {name: made.detach() for name, made in ctx.items()}
        fits = "mlp_gate" in kept and kept["mlp_gate"].shape[:2] == x.shape[:2]
        return true(self, x, ctx=kept if fits else ctx, cache=cache)

    monkeypatch.setattr(block.RA_MLA_Block, "forward", stale)
    found = failures(subject_of(base, 3))
    assert "with the history" in found["stateless"]


def test_a_mechanism_that_is_off_while_training_is_found(base, monkeypatch):
    """With a fixed alpha there is no parameter that would miss its gradient."""
    whole = Reciprocity.score_term

    def idle(self, heads, cache):
        found = whole(self, heads, cache)
        return dataclasses.replace(found, alpha=0.0) if self.training else found

    monkeypatch.setattr(Reciprocity, "score_term", idle)
    found = failures(subject_of(base, 5))
    assert list(found) == ["stateless"]
    assert "in training are" in found["stateless"]


def test_context_never_passed_names_the_producer(base, monkeypatch):
    def forgetful(self, x, cache=None):
        for each in self.blocks:
            x, _ = each(x, ctx={})
        return self.ln_f(x)

    monkeypatch.setattr(gpt.GPT, "hidden", forgetful)
    found = failures(subject_of(base, 3))
    assert "block 1 reads mlp_gate, which block 0 did not produce" in found["causal"]


def test_context_accepted_but_not_read_does_not_act(base, monkeypatch):
    monkeypatch.setattr(GatedByMlp, "gate_heads", lambda self, out, *_: out)
    found = failures(subject_of(base, 3))
    assert "mlp_gate changes nothing" in found["acting"]
    assert "does not reach block 1" in found["acting"]
    assert "had no gradient" in found["alive"]


def test_dead_parameter_is_found(base):
    class WithDead(gpt.GPT):
        def __init__(self, settings):
            super().__init__(settings)
            self.unused = torch.nn.Parameter(torch.ones(3))

    subject = dataclasses.replace(subject_of(base, 0), build=WithDead)
    found = failures(subject)
    assert "unused had no gradient" in found["alive"]
    assert "parameters, expected" in found["budget"]


def test_producer_in_the_last_block_is_a_dead_parameter(base, monkeypatch):
    true = mlp.MLP.__init__
    monkeypatch.setattr(
        mlp.MLP, "__init__", lambda self, settings, produces: true(self, settings, True)
    )
    assert "had no gradient" in failures(subject_of(base, 3))["alive"]


def test_detached_path_has_no_gradient(base, monkeypatch):
    true = MlpGate.make

    def detached(self, hidden, cache=None):
        return true(self, hidden, cache).detach()

    monkeypatch.setattr(MlpGate, "make", detached)
    assert "gate.down.weight had no gradient" in failures(subject_of(base, 3))["alive"]


def test_detached_statistic_has_the_wrong_gradient(base, monkeypatch):
    true = reference.row_statistic
    monkeypatch.setattr(reference, "row_statistic", lambda w, s: true(w, s).detach())
    found = failures(subject_of(base, 13))
    assert "the gradient of" in found["formula"]


def test_parameter_in_two_groups_or_none_is_found(base):
    def doubled(net, optim):
        optimizer = optimize.make_optimizer(net, optim)
        optimizer.param_groups[1]["params"].append(
            optimizer.param_groups[0]["params"][0]
        )
        return optimizer

    def forgotten(net, optim):
        optimizer = optimize.make_optimizer(net, optim)
        optimizer.param_groups[0]["params"].pop(0)
        return optimizer

    subject = subject_of(base, 0)
    for fault in (doubled, forgotten):
        found = failures(dataclasses.replace(subject, optimizer=fault))
        assert "not exactly once: ['wte.weight']" in found["alive"]


def test_weight_decay_that_was_not_asked_for_is_found(base):
    def without(net, optim):
        return optimize.make_optimizer(
            net, dataclasses.replace(optim, weight_decay=0.0)
        )

    found = failures(dataclasses.replace(subject_of(base, 0), optimizer=without))
    assert "not exactly once: none; wrong decay: " in found["alive"]


def test_einsum_with_a_wrong_letter_is_not_the_formula(base, monkeypatch):
    def rank_one(t, distance, columns):
        scores = torch.einsum("bhid,bhje->bhij", t.keys, t.queries)
        return t.alpha_per_head * scores.masked_fill(distance > t.window, 0.0)

    monkeypatch.setattr(reference, "_transposed_scores", rank_one)
    found = failures(subject_of(base, 5))
    assert "the attention of block" in found["formula"]
    assert "acting" not in found and "alive" not in found  # they cannot tell


def test_transposed_score_untransposed_is_not_the_formula(base, monkeypatch):
    true = Reciprocity.score_term

    def swapped(self, heads, cache):
        roles = {"row_q": heads.row_k, "row_k": heads.row_q}
        return true(self, dataclasses.replace(heads, **roles), cache)

    monkeypatch.setattr(Reciprocity, "score_term", swapped)
    assert "formula" in failures(subject_of(base, 5))


def one_more_kept(weights, select, topk, tau, renorm, visible):
    return KEEP(weights, select, topk + 1, tau, renorm, visible)


KEEP = kept_weights.keep_weights
GATE = GatedByMlp.gate_heads
ROPE_ANGLES = rope_layer.rope_angles
READER = LatentExchange.reader
# What attention itself gives is right, and something around it is not.
WIRED_WRONGLY = [
    (22, "cross_token.layer.keep_weights", one_more_kept, "the MLP of block 0"),
    (
        27,
        "latent.layer.chunk_of",
        lambda width, n: [i % n for i in range(width)],
        "the MLP of",
    ),
    (
        19,
        "output_gate.layer.OutputGate.forward",
        lambda self, x: torch.tanh(self.gate(x)),
        "the attention of block 0",
    ),
    (
        3,
        "mlp_gate.layer.GatedByMlp.gate_heads",
        lambda self, out, attended, given: GATE(self, out, attended, given.flip(-1)),
        "the attention of block 1",
    ),
    (
        28,
        "mla_rope.layer.rope_angles",
        lambda length, width: 2 * ROPE_ANGLES(length, width),
        "the attention of block 0",
    ),
    (
        26,
        "latent.layer.LatentExchange.reader",
        lambda self: 2 * READER(self),
        "the mlp_latent of block 0",
    ),
]


@pytest.mark.parametrize("fault", WIRED_WRONGLY, ids=lambda fault: fault[1])
def test_part_that_is_wired_wrongly_is_named(base, monkeypatch, fault):
    step, place, wrong, where = fault
    monkeypatch.setattr(f"gpt2.mechanisms.{place}", wrong)
    finding = formula(subject_of(base, step))
    assert not finding.passed and finding.detail.startswith(where), finding


def test_gradient_that_a_part_loses_is_named(base, monkeypatch):
    true = LatentExchange.update

    def detached(self, hidden, side, cache):
        side = side._replace(key_latent=side.key_latent.detach())
        return true(self, hidden, side, cache)

    monkeypatch.setattr(LatentExchange, "update", detached)
    finding = formula(subject_of(base, 25))
    assert "the gradient of wte.weight deviates" in finding.detail


def test_feature_that_is_not_neutral_at_zero_is_found(base, monkeypatch):
    monkeypatch.setattr(
        "gpt2.mechanisms.mlp_gate.layer.mixed", lambda gate, mix: 0.9 + mix * gate
    )
    assert "neutral mlp_gate deviates" in failures(subject_of(base, 3))["identity"]


def test_cache_that_forgets_the_window_is_found(base, monkeypatch):
    true = Reciprocity.__init__

    def short(self, settings):
        true(self, settings)
        self.keep = 1

    monkeypatch.setattr(Reciprocity, "__init__", short)
    found = failures(subject_of(base, 5))
    assert "decoding deviates" in found["decode"]
    assert "the cache holds" in found["budget"]


def test_extra_matrix_product_breaks_the_flop_budget(base, monkeypatch):
    true = mlp.MLP.forward

    def twice(self, x, *, side, cache=None):
        F.linear(x, self.fc.weight)
        return true(self, x, side=side, cache=cache)

    monkeypatch.setattr(mlp.MLP, "forward", twice)
    assert "FLOPs are" in failures(subject_of(base, 0))["budget"]


def count(base: Settings, *steps: int) -> None:
    """Ends its process with 1 if torch's compiler was imported."""
    for step in steps:
        assert budgets(subject_of(base, step)).passed
    sys.exit("torch._dynamo" in sys.modules)


def test_models_with_tables_are_counted_without_the_compiler(base):
    process = server().Process(target=count, args=(base, 27, 28))
    process.start()
    process.join()
    assert process.exitcode == 0


def test_no_false_alarm_on_the_shipped_steps(base, monkeypatch):
    """At every certificate; what is checked at size is tried at a smaller one."""
    size = {"n_layer": 3, "n_head": 5, "n_embd": 60, "block_size": 40}
    monkeypatch.setattr(certify_steps, "LARGER", size)
    assert_certified(plan_of(base, *ALL))


@pytest.mark.slow
def test_no_false_alarm_on_the_shipped_steps_at_size(base):
    assert_certified(plan_of(base, *ALL))


def test_a_control_is_meant_to_build_what_its_baseline_does(base):
    plan = plan_of(base.replace(controls=True), 0)
    cells = list(certify_plan(plan))
    assert [(p.name, p.message) for p in cells] == [
        ("step00-baseline", ""),
        ("step00-baseline-aa", ""),
    ]
    with forked(2) as begin:  # one certificate for both
        assert list(certify_plan(plan, None, begin)) == cells


def assert_certified(plan: Plan) -> None:
    cells = list(certify_plan(plan))
    assert {p.name: p.message for p in cells if not p.ok} == {}
    assert len(cells) == len(STEPS)
    assert set(cells[0].findings) == set(COLUMNS)


ODD_SIZES = [
    {"seed": 2, "batch": 3, "n_head": 1, "n_layer": 2, "block_size": 17},
]


@pytest.mark.parametrize("size", ODD_SIZES, ids=["one-head"])
def test_no_false_alarm_at_odd_sizes(base, size):
    assert odd_failures(base, dict(size), kinds(base)) == {}


def kinds(base: Settings) -> tuple[int, ...]:
    """Steps that differ in more than numbers: one for each set of mechanisms."""
    found: dict[tuple[object, ...], int] = {}
    for job in plan_of(base, *ALL).jobs:
        x = job.settings.mechanisms
        words = [v for v in dataclasses.astuple(x) if isinstance(v, bool | str)]
        found.setdefault((*words, x.ra_window == WHOLE_CONTEXT), job.step)
    return tuple(found.values())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("layers", [2, 3, 4])
def test_no_false_alarm_at_length_63(base, seed, heads, layers):
    size = {"seed": seed, "batch": 3, "n_head": heads, "n_layer": layers}
    assert odd_failures(base, {**size, "n_embd": 48, "block_size": 63}, ALL) == {}


def odd_failures(
    base: Settings, size: dict[str, int], steps: tuple[int, ...]
) -> dict[str, dict[str, str]]:
    seed, batch = size.pop("seed"), size.pop("batch")
    found = subjects(plan_of(base, *steps), **size)
    new = {"seed": seed, "batch": batch, "larger": None}
    odd = {n: dataclasses.replace(s, **new) for n, s in found.items()}
    return {name: failures(s) for name, s in odd.items() if failures(s)}


def test_shrink_keeps_what_certificates_compare(base):
    small = shrink(base)
    assert small.mechanisms.ra_window < small.model.block_size - 1
    assert small.mechanisms.ract_topk < small.model.block_size
    assert small.optim.optimizer == base.optim.optimizer
    whole = shrink(base.replace(ra_window=0))
    assert whole.mechanisms.ra_window == 0


@pytest.mark.parametrize("place", ["file/cache.json", "folder"])
def test_certificates_run_where_they_cannot_be_kept(tmp_path, place):
    """As in a checkout of another user; the errors of these hold for root as well."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    cache = FindingsCache(tmp_path / place)
    assert cache.of(["anything"], lambda: {"it": NO_FINDING}) == {"it": NO_FINDING}
    assert FindingsCache(tmp_path / place).known == {}
