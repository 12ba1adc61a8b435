"""Planted faults that one part of a certificate alone can see.

Each stands for a part that could be left out without any other test failing.
"""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch
from torch import nn

from gpt2.mechanisms.latent.layer import MlpLatent
from gpt2.mechanisms.mlp_gate.layer import MlpGate
from gpt2.mechanisms.ra.layer import Reciprocity
from gpt2.mechanisms.ract.layer import StatisticGate
from gpt2.model import gpt, mlp
from gpt2.model.reference.measures import deviation
from gpt2.plan.planning import plan_settings
from gpt2.settings.schema import Settings
from gpt2.train.build_optimizer import make_optimizer
from gpt2.verify.certificates import (
    alive,
    budgets,
    causal,
    certify,
    decode,
    formula,
    stateless,
)
from gpt2.verify.certify_steps import shrink, step_subject, subjects
from gpt2.verify.features import acting, identity
from gpt2.verify.subject import Subject
from tests.gpt2.helpers import full_size


@cache
def base() -> Settings:
    return full_size()


def plan_of(*steps: int):
    asked = base().replace(mode="ablation", steps=steps, seeds=(1,))
    return plan_settings(asked, {})


@cache
def subject(step: int = 0) -> Subject:
    (found,) = subjects(plan_of(step)).values()
    return dataclasses.replace(found, larger=None)


HIDDEN, LOGITS = gpt.GPT.hidden, gpt.GPT.logits
EMBED, DECODE = gpt.GPT.embed, gpt.GPT.decode


def message(finding) -> str:
    assert not finding.passed, finding
    return finding.detail


# ---- causal, stateless ------------------------------------------------------------


def test_a_gradient_from_the_future_alone_is_not_causal(monkeypatch):
    """Straight-through: the number that is added is 0, its slope is not."""

    def leaking(self, x, cache=None):
        ahead = x.flip(1)
        return HIDDEN(self, x + (ahead - ahead.detach()), cache)

    monkeypatch.setattr(gpt.GPT, "hidden", leaking)
    assert message(causal(subject())).startswith("the gradient moves")


def test_a_later_token_that_the_first_text_has_not_is_seen(monkeypatch):
    """Tokens that are cut off have no effect, and a comparison has no gradient."""
    first, other = (subject().tokens(t) for t in ("causal", "another suffix"))
    rare = next(t for t in other[:, 1:].flatten().tolist() if not (first == t).any())

    def peeking(self, tokens, position=0):
        ahead = (tokens == rare).flip(1).cumsum(1).flip(1) > 0
        x = EMBED(self, tokens, position)
        return x + ahead[..., None] * x.flip(-1)

    monkeypatch.setattr(gpt.GPT, "embed", peeking)
    assert message(causal(subject())).startswith("changing the tokens")


@pytest.mark.parametrize("place", [0, 22])
def test_one_place_that_sees_the_next_is_found(monkeypatch, place):
    def leaking(self, x, cache=None):
        if x.shape[1] > place + 1:
            x = x.clone()
            x[:, place] += x[:, place + 1]
        return HIDDEN(self, x, cache)

    monkeypatch.setattr(gpt.GPT, "hidden", leaking)
    assert "moves earlier logits" in message(causal(subject()))


def test_the_largest_batch_so_far_is_state(monkeypatch):
    def growing(self, x, cache=None):
        self.largest = max(getattr(self, "largest", 0), len(x))
        return HIDDEN(self, x, cache) * self.largest

    monkeypatch.setattr(gpt.GPT, "hidden", growing)
    assert "with the history" in message(stateless(subject()))


def test_a_mean_kept_while_training_is_state_in_evaluation(monkeypatch):
    def averaging(self, x, cache=None):
        if self.training:
            self.mean = x.detach().mean()
            return HIDDEN(self, x, cache)
        return HIDDEN(self, x, cache) + getattr(self, "mean", 0.0)

    monkeypatch.setattr(gpt.GPT, "hidden", averaging)
    assert "with the history" in message(stateless(subject()))


# ---- alive ------------------------------------------------------------------------


def still(net, optim):
    """Groups as they should be, and a rate of 0 for one of them."""
    optimizer = make_optimizer(net, optim)
    optimizer.param_groups[0]["lr"] = 0.0
    return optimizer


def foreign(net, optim):
    optimizer = make_optimizer(net, optim)
    optimizer.param_groups[0]["params"].append(nn.Parameter(torch.ones(2)))
    return optimizer


@pytest.mark.parametrize(
    ("fault", "text"),
    [(still, "did not move"), (foreign, "not of the model: 1")],
)
def test_an_optimizer_that_moves_other_tensors_is_found(fault, text):
    faulty = dataclasses.replace(subject(), optimizer=fault)
    assert text in message(alive(faulty))


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_not_alive(factor):
    class Bursting(gpt.GPT):
        def __init__(self, settings):
            super().__init__(settings)
            self.ln_f.weight.register_hook(lambda g: torch.full_like(g, factor))

    faulty = dataclasses.replace(subject(), build=Bursting)
    assert "ln_f.weight has a gradient that is not finite" in message(alive(faulty))


def test_an_evaluation_that_freezes_the_model_is_found(monkeypatch):
    true = gpt.GPT.score

    def freezing(self, tokens, targets):
        self.requires_grad_(False)
        return true(self, tokens, targets)

    monkeypatch.setattr(gpt.GPT, "score", freezing)
    found = certify(dataclasses.replace(subject(), batch=1))["alive"]
    assert found.figure == "crashed" and "does not require grad" in message(found)


# ---- acting, identity -------------------------------------------------------------


def test_a_feature_that_acts_by_rounding_alone_does_not_act(monkeypatch):
    true = Reciprocity.score_term

    def faint(self, heads, cache):
        return dataclasses.replace(true(self, heads, cache), alpha=1e-6)

    monkeypatch.setattr(Reciprocity, "score_term", faint)
    assert "ra changes nothing" in message(acting(subject(5)))


def test_each_tensor_handed_on_has_to_be_read(monkeypatch):
    """A gate of 0 changes the next block, whether or not that reads the latent."""
    both = {"latent": "untied", "mlp_gate": True, "mlp_gate_dim": 64}
    small = shrink(base().replace(mode="single", attention="mla", **both))
    settings = plan_settings(small, {}).jobs[0].settings
    assert acting(Subject(settings, settings)).passed
    monkeypatch.setattr(MlpLatent, "latent", lambda self, given: 0 * given)
    text = message(acting(Subject(settings, settings)))
    assert text.startswith("mlp_latent from block 0 does not reach block 1")
    assert "mlp_gate" not in text


def test_a_neutral_value_that_rounds_is_not_neutral(monkeypatch):
    monkeypatch.setattr(
        "gpt2.mechanisms.mlp_gate.layer.mixed",
        lambda gate, mix: 1.0 + 2e-7 - mix + mix * gate,
    )
    assert "neutral mlp_gate deviates" in message(identity(subject(3)))


def never_zero(self, settings, *rest):
    """Mixes that a wrong check takes for unset."""
    INITS[type(self)](self, settings, *rest)
    self.mix = self.mix or 0.5


INITS = {c: c.__init__ for c in (StatisticGate, MlpLatent)}


@pytest.mark.parametrize(
    ("step", "part", "name"),
    [(13, StatisticGate, "ract"), (25, MlpLatent, "latent")],
)
def test_each_feature_is_held_to_its_neutral_value(monkeypatch, step, part, name):
    monkeypatch.setattr(part, "__init__", never_zero)
    assert f"neutral {name} deviates" in message(identity(subject(step)))


# ---- budget, decode, formula ------------------------------------------------------


@pytest.mark.parametrize("at_full_size", [False, True])
def test_parameters_are_counted_at_both_sizes(at_full_size):
    class Larger(gpt.GPT):
        def __init__(self, settings):
            super().__init__(settings)
            if (settings.model.n_layer > 3) == at_full_size:
                self.more = nn.Parameter(torch.ones(3))

    faulty = dataclasses.replace(subject(), build=Larger)
    assert "parameters, expected" in message(budgets(faulty))


def test_fewer_operations_than_expected_are_found(monkeypatch):
    monkeypatch.setattr(gpt.GPT, "hidden", lambda self, x, cache=None: self.ln_f(x))
    assert "FLOPs are 0." in message(budgets(subject()))


@pytest.mark.parametrize("single", [False, True], ids=["prompt", "token"])
def test_decoding_is_tried_by_prompt_and_by_token(monkeypatch, single):
    def wrong(self, tokens, cache):
        right = DECODE(self, tokens, cache)
        return right * 1.01 if (tokens.shape[1] == 1) == single else right

    monkeypatch.setattr(gpt.GPT, "decode", wrong)
    assert "decoding deviates" in message(decode(subject()))


def test_decoding_as_gpus_record_it_is_tried(monkeypatch):
    """The number of tokens before one is not known on the host there."""
    as_layer = MlpGate._prefix_mean

    def by_the_host(low, cache):
        if cache is None or cache.place.row is None:
            return as_layer(low, cache)
        before = cache.add("gate_sum", low)
        return (before + low) / (cache.place.start + 1)

    pooled = base().replace(mlp_gate_pool="prefix_mean")
    pooled_subject = step_subject(pooled, 3)
    assert decode(pooled_subject).passed
    monkeypatch.setattr(MlpGate, "_prefix_mean", staticmethod(by_the_host))
    assert message(decode(pooled_subject)).startswith("recorded decoding deviates")


def test_logits_that_alone_are_off_are_named(monkeypatch):
    monkeypatch.setattr(
        gpt.GPT, "logits", lambda self, tokens: LOGITS(self, tokens) + 0.1
    )
    assert message(formula(subject())).startswith("the logits deviate")


def test_gates_that_nobody_should_make_are_named(monkeypatch):
    true = mlp.MLP.__init__
    monkeypatch.setattr(
        mlp.MLP, "__init__", lambda self, settings, produces: true(self, settings, True)
    )
    assert message(formula(subject(3))).startswith("the mlp_gate of block 2")


def test_gates_that_are_wrong_are_named_before_what_they_do(monkeypatch):
    true = MlpGate.make
    monkeypatch.setattr(MlpGate, "make", lambda self, *given: true(self, *given) / 2)
    assert message(formula(subject(3))).startswith("the mlp_gate of block 0")


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_what_is_not_finite_deviates(odd):
    assert deviation(torch.tensor([0.0, odd]), torch.zeros(2)) == float("inf")
