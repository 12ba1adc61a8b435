"""The optimizers pass their certificates; planted faults do not."""

from dataclasses import replace

import pytest
import torch

from lib.optim import certify, certify_spam
from lib.optim.config import OptimConfig
from lib.optim.groups import Group, copied, decay_groups
from lib.optim.muon_adamw import MuonAdamW
from lib.optim.registry import OPTIMIZERS
from lib.optim.spam import UPDATES, AdamWSPAM

# The same phases in fewer updates: resets at 60 and 120, a spike in each window.
TRIAL = certify.trial_config("adamwspam")
SHORT = replace(TRIAL, own={**TRIAL.own, "spam_interval": 60, "spam_warmup": 30})
SHORT_UPDATES = 130


def spam_of(kind: type[AdamWSPAM]) -> certify.Make:
    """A `make` that builds `kind` where the registry would build AdamWSPAM."""

    def make(name: str, groups: list[Group], config: OptimConfig) -> AdamWSPAM:
        phases = {k.removeprefix("spam_"): v for k, v in config.own.items()}
        return kind(copied(groups), **config.adam, **phases)

    return make


def verdicts(kind: type[AdamWSPAM]) -> dict[str, bool]:
    trace = certify_spam.spam_trace(spam_of(kind), SHORT, SHORT_UPDATES)
    checks = (
        certify_spam.check_clip,
        certify_spam.check_reset,
        certify_spam.check_warmup,
    )
    rows = [check(trace, SHORT) for check in checks]
    return {row.name.removeprefix("adamwspam: "): row.passed for row in rows}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_follows_the_float64_reference(name):
    row = certify.check_reference(name)
    assert row.passed, row


@pytest.mark.parametrize("name", ["adamwadv", "adamwspam"])
def test_single_precision_follows_it_too(name):
    row = certify.check_reference(name, config=SHORT, dtype=torch.float32, updates=130)
    assert row.passed, row


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_asked_is_decay_applied(name):
    row = certify.check_decay(name)
    assert row.passed, row


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resume_is_exact(name):
    row = certify.check_resume(name)
    assert row.passed, row


def test_spam_clips_resets_and_warms_up():
    rows = certify_spam.check_spam().values()
    assert all(row.passed for row in rows), rows


def test_spam_on_the_short_cycle_passes():
    assert all(verdicts(AdamWSPAM).values())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_and_settings_are_as_claimed(name):
    rows = [certify.check_state(name), certify.check_settings(name)]
    assert all(row.passed for row in rows), rows


@pytest.mark.parametrize(
    "claim",
    [{"kept": 1}, {"kept": 3}, {"reads": ("beta1", "beta2")}]
    + [{"reads": ("beta1", "beta2", "eps", "momentum")}],
)
def test_a_wrong_claim_of_an_optimizer_is_caught(claim, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "adamw", replace(OPTIMIZERS["adamw"], **claim))
    check = certify.check_state if "kept" in claim else certify.check_settings
    assert not check("adamw").passed


def test_an_own_setting_that_does_not_act_is_caught():
    def make(name, groups, config):
        own = {**config.own, "spam_warmup": 4}
        return certify.make_default(name, groups, replace(config, own=own))

    row = certify.check_settings("adamwspam", make)
    assert not row.passed and row.detail == "spam_warmup does not act"


def test_groups_hold_each_parameter_once():
    assert certify.check_groups().passed


class ClipsACopy(AdamWSPAM):
    def _with_history(self):
        gradients, seconds = super()._with_history()
        return [gradient.clone() for gradient in gradients], seconds


class ClipsByDebiasedMoment(AdamWSPAM):
    def _with_history(self):
        gradients, seconds = super()._with_history()
        return gradients, [v / (1 - 0.95**self.updates) for v in seconds]


class FrozenCount(AdamWSPAM):
    def _count(self):
        for group in self.param_groups:
            group[UPDATES] = 1


class DoubledCount(AdamWSPAM):
    def _count(self):
        super()._count()
        super()._count()


class KeepsSecondMoment(AdamWSPAM):
    def _reset_moments(self):
        for state in self.state.values():
            state["exp_avg"].zero_()


class NeverWarmsUp(AdamWSPAM):
    def step(self, closure=None):
        self.warmup = 0
        return super().step(closure)


@pytest.mark.parametrize(
    ("kind", "caught_by"),
    [
        (ClipsACopy, "clip fires"),
        (ClipsByDebiasedMoment, "clip fires"),
        (FrozenCount, "resets"),
        (DoubledCount, "resets"),
        (KeepsSecondMoment, "resets"),
        (NeverWarmsUp, "warm-up"),
    ],
)
def test_a_fault_in_spam_is_caught(kind, caught_by):
    assert verdicts(kind)[caught_by] is False


def follows(name: str, make: certify.Make) -> bool:
    row = certify.check_reference(name, make, SHORT, updates=SHORT_UPDATES)
    return row.passed


def test_the_short_cycle_follows_the_reference():
    assert follows("adamwspam", spam_of(AdamWSPAM))
    assert follows("muon", certify.make_default)


def test_a_clip_on_a_copy_leaves_the_reference():
    assert not follows("adamwspam", spam_of(ClipsACopy))


def test_a_decay_that_is_warmed_up_leaves_the_reference():
    class ScalesDecay(AdamWSPAM):
        def _scaled(self, scale):
            context = super()._scaled(scale)
            for group in self.param_groups:
                group["weight_decay"] *= scale
            return context

    assert not follows("adamwspam", spam_of(ScalesDecay))


def test_a_phase_that_is_not_saved_is_caught():
    class ForgetsPhase(AdamWSPAM):
        def state_dict(self):
            state = super().state_dict()
            groups = [{**group, UPDATES: 0} for group in state["param_groups"]]
            return {**state, "param_groups": groups}

    assert not certify.check_resume("adamwspam", spam_of(ForgetsPhase)).passed


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_decay_of_zero_where_one_was_asked_is_caught(name):
    def make(name, groups, config):
        without = [{**group, "weight_decay": 0.0} for group in groups]
        return certify.make_default(name, without, config)

    assert not certify.check_decay(name, make).passed


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_decay_of_biases_is_caught(name):
    def make(name, groups, config):
        decay = groups[0]["weight_decay"]
        return certify.make_default(
            name, [{**group, "weight_decay": decay} for group in groups], config
        )

    assert not certify.check_decay(name, make).passed


@pytest.mark.parametrize("name", ["adam", "adamw", "adamwspam"])
def test_weights_that_are_not_numbers_do_not_decay_as_asked(name):
    """Without eps, a gradient of 0 makes 0 / 0 of them."""

    def make(name, groups, config):
        return certify.make_default(name, groups, replace(config, eps=0.0))

    row = certify.check_decay(name, make)
    assert not row.passed and row.figure == float("inf")


@pytest.mark.parametrize("check", [certify_spam.check_clip, certify_spam.check_warmup])
def test_moments_that_are_not_numbers_are_no_phase_of_spam(check):
    trace = certify_spam.spam_trace(spam_of(AdamWSPAM), SHORT, SHORT_UPDATES)
    assert check(trace, SHORT).passed
    trace[50] = replace(trace[50], first=trace[50].first * float("nan"))
    assert not check(trace, SHORT).passed


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_that_is_not_loaded_is_caught(name, monkeypatch):
    def make(name, groups, config):
        optimizer = certify.make_default(name, groups, config)
        monkeypatch.setattr(optimizer, "load_state_dict", lambda state: None)
        return optimizer

    assert not certify.check_resume(name, make).passed


def test_faulty_groups_are_caught():
    def twice(named, decay):
        return 2 * decay_groups(named, decay)

    def first_only(named, decay):
        return decay_groups(named, decay)[:1]

    def undecayed(named, decay):
        return decay_groups(named, 0.0)

    for fault in (twice, first_only, undecayed):
        assert not certify.check_groups(fault).passed


@pytest.mark.parametrize(
    "fault", [{"adjust_lr_fn": "original"}, {"nesterov": False}, {"ns_steps": 4}]
)
def test_another_muon_leaves_the_reference(fault):
    def make(name, groups, config):
        optimizer = certify.make_default(name, groups, config)
        assert isinstance(optimizer, MuonAdamW)
        for group in optimizer.muon.param_groups:
            group.update(fault)
        return optimizer

    assert not follows("muon", make)
