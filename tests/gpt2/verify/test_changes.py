"""Each field that a step changes must change the model; identical steps are found."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

from gpt2.mechanisms import mechanisms
from gpt2.mechanisms.mlp_gate.layer import MlpGate
from gpt2.mechanisms.ract.layer import StatisticGate
from gpt2.mechanisms.spec import Projection
from gpt2.model.gpt import GPT
from gpt2.plan.jobs import Plan
from gpt2.plan.planning import plan_settings
from gpt2.plan.registry import Step
from gpt2.plan.steps import STEPS
from gpt2.settings.checks import check
from gpt2.settings.schema import FIELD_TYPES, FIELDS, NO_WIDTH_REQUESTS, PARTS, Settings
from gpt2.verify.certify_steps import certify_plan, step_subject, subjects
from gpt2.verify.changes import (
    Behaviour,
    Difference,
    changes,
    difference,
    distinct,
    moves_widths,
)
from gpt2.verify.short_training import brought_down
from gpt2.verify.subject import Finding, Subject
from tests.gpt2.helpers import full_size, tiny_model


def base(**fields: Any) -> Settings:
    """GPT-2 124M as Kconfig has it in fp32, with fields changed."""
    return full_size().replace(**{"mixed_precision": "fp32", **fields})


def compared(one: Settings, **changed: Any) -> Difference | None:
    """In what two models of a tiny size differ."""
    check(one)
    other = one.replace(**changed)
    check(other)
    pair = (Behaviour(Subject(settings, settings)) for settings in (one, other))
    return difference(*pair)


# ---- every field of Mechanisms ----------------------------------------------------


def values_of(name: str, context: Settings) -> tuple[Any, Any]:
    """Two values of a field: those that it may have, or the tiny one and another."""
    now = context.flat()[name]
    if allowed := FIELDS[name].metadata["allowed"]:
        return now, next(value for value in allowed if value != now)
    other: dict[type, Any] = {
        bool: lambda: not now,
        int: lambda: now + 2,
        float: lambda: now / 2,
    }
    return now, other[FIELD_TYPES[name]]()


def with_it_on() -> Iterator[Any]:
    """(field, settings where it is read) for each field but requests for widths."""
    for mechanism in mechanisms():
        ((switch, off),) = mechanism.off.items()
        allowed = FIELDS[switch].metadata["allowed"] or (True,)
        if isinstance(mechanism, Projection):
            allowed = (mechanism.kind,)
        for value in (value for value in allowed if value != off):
            on = {**mechanism.needs, switch: value}
            yield pytest.param(switch, on, id=f"{switch}={value}")
            for reads in mechanism.readers():
                where = {**on, **reads.where}
                if where[switch] == value:
                    for name in reads.fields:
                        id = f"{name} where " + " ".join(map(str, where.values()))
                        yield pytest.param(name, where, id=id)


@pytest.mark.parametrize(("name", "on"), list(with_it_on()))
def test_every_field_of_a_mechanism_is_seen(name: str, on: dict[str, Any]) -> None:
    """At two of its values certificates tell the models apart, and not by training."""
    settings = tiny_model(**on)
    _, other = values_of(name, settings)
    found = compared(settings, **{name: other})
    assert found is not None and found.kind in ("function", "shapes"), found


@pytest.mark.parametrize("name", NO_WIDTH_REQUESTS)
def test_every_request_for_widths_is_seen(name: str) -> None:
    asking = [s for s in STEPS.values() if s.changes.get(name, 0) not in (0, "")]
    assert asking
    for step in asking[:2]:
        assert moves_widths(name, step, base())


def test_a_field_that_the_model_does_not_read_is_not_seen() -> None:
    """Whatever the certificates compare, a model built without it is the same."""

    def deaf(settings: Settings) -> GPT:
        return GPT(settings.replace(ract_head_average=False))

    settings = tiny_model(ract=True)
    pair = [settings, settings.replace(ract_head_average=True)]
    assert difference(*(Behaviour(Subject(s, s, build=deaf)) for s in pair)) is None


def test_a_gradient_that_one_of_two_models_lacks_is_a_difference(monkeypatch) -> None:
    """Logits alone would not tell them apart."""
    true = MlpGate.make

    def cut(self, *given):
        return true(self, *given).detach() if self.pooled else true(self, *given)

    monkeypatch.setattr(MlpGate, "make", cut)
    monkeypatch.setattr(MlpGate, "_prefix_mean", lambda self, low, *_: low)
    found = compared(tiny_model(mlp_gate=True), mlp_gate_pool="prefix_mean")
    assert found is not None and found.kind == "function"


def test_numbers_that_are_not_finite_are_not_taken_for_a_difference() -> None:
    """The gradient of one parameter is NaN in both of two equal models."""

    class Broken(GPT):
        def logits(self, tokens: torch.Tensor) -> torch.Tensor:
            bias = self.ln_f.bias
            return super().logits(tokens) + 0 * (bias - bias.detach()).sqrt().sum()

    def deaf(settings: Settings) -> GPT:
        return Broken(settings.replace(ract_head_average=False))

    settings = tiny_model(ract=True)
    pair = [settings, settings.replace(ract_head_average=True)]
    assert difference(*(Behaviour(Subject(s, s, build=deaf)) for s in pair)) is None


# ---- what changes training --------------------------------------------------------

SPAM = {"optimizer": "adamwspam"}
PRUNED = {"prune_method": "magnitude"}
BITTER = {"optimizer": "adamwprune", "prune_method": "state"}
TRAINING: list[tuple[str, Any, dict[str, Any]]] = [
    ("learning_rate", 6.01e-4, {}),
    ("prune_sparsity", 0.51, PRUNED),
    ("spam_threshold", 70.0, SPAM),
    ("residual_fp32", True, {"residual_fp32": False, "mixed_precision": "bf16"}),
]
SLOW: list[tuple[str, Any, dict[str, Any]]] = [
    *(("optimizer", name, {}) for name in ("sgd", "adam", "adamwadv", "muon")),
    *(("min_lr", 1e-5, {}), ("warmup_steps", 201, {}), ("max_iters", 4999, {})),
    ("lr_schedule", "wsd", {}),
    ("lr_decay_share", 0.25, {"lr_schedule": "wsd"}),
    ("lr_decay_shape", "linear", {"lr_schedule": "wsd"}),
    *(("time_budget", "2h", {}), ("time_budget", "1h", {"time_budget": "2h"})),
    *(("weight_decay", 0.101, {}), ("beta1", 0.91, {}), ("beta2", 0.96, {})),
    *(("eps", 1.1e-8, {}), ("grad_clip", 0.0, {}), ("grad_clip", 1.1, {})),
    *(("momentum", 0.8, {"optimizer": name}) for name in ("sgd", "muon")),
    *(("spam_interval", 501, SPAM), ("spam_warmup", 151, SPAM)),
    ("spam_reset_counter", True, SPAM),
    ("adamwprune_variant", "bitter4", {**BITTER, "adamwprune_variant": "bitter1"}),
    *(("prune_interval", 51, PRUNED), ("prune_warmup", 201, PRUNED)),
    *(("prune_ramp_end", 0.5, PRUNED), ("prune_scope", "layer", PRUNED)),
    ("prune_method", "movement", PRUNED),
    ("mixed_precision", "bf16", {"mixed_precision": "fp32"}),
    ("mixed_precision", "fp16", {"mixed_precision": "bf16", "device": "auto"}),
]


def test_the_cases_are_every_field_of_optimizer_and_pruning() -> None:
    parts = ("optim", "pruning")
    fields = {f.name for part in parts for f in dataclasses.fields(PARTS[part])}
    assert {name for name, _, _ in (*TRAINING, *SLOW)} == fields


@pytest.mark.parametrize(
    ("name", "value", "where"),
    [*TRAINING, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_a_field_of_training_moves_updates(
    name: str, value: Any, where: dict[str, Any]
) -> None:
    settings = tiny_model(**where)
    assert settings.flat()[name] != value
    found = compared(settings, **{name: value})
    assert found is not None and found.kind == "updates"


def test_dropout_is_seen_though_certificates_are_without_it() -> None:
    subject = Subject(tiny_model(), tiny_model(dropout=0.1))
    other = dataclasses.replace(subject, full=tiny_model(dropout=0.2))
    found = difference(Behaviour(subject), Behaviour(other))
    assert found is not None and found.kind == "updates"


def test_how_a_run_is_carried_out_makes_no_other_model() -> None:
    """Nor do labels and evaluation."""
    changed: dict[str, Any] = {"attention_backend": "reference", "num_workers": 5}
    changed |= {"model_size": "xl", "eval_interval": 3, "log_interval": 3}
    assert compared(tiny_model(mixed_precision="bf16"), **changed) is None


@pytest.mark.slow
def test_little_pruning_is_tried_where_it_prunes(add_step) -> None:
    """A tenth of the heads, or of the run, would be nothing at tiny sizes."""
    pruned = add_step({"prune_method": "heads", "prune_sparsity": 0.1})
    assert found_for(pruned, base(prune_ramp_end=0.1)).passed
    more = add_step({"prune_sparsity": 0.2, "prune_ramp_end": 0.2}, parent=90, id=91)
    assert found_for(more, base(prune_ramp_end=0.1)).passed


def test_the_initial_value_of_a_learned_alpha_is_seen() -> None:
    settings = tiny_model(ra=True, ra_learned_alpha=True)
    found = compared(settings, ra_alpha=-0.2)
    assert found is not None and found.kind == "initial weights"


def test_settings_brought_down_differ_as_they_did() -> None:
    one = base(prune_interval=500, warmup_steps=2, mixed_precision="fp16")
    two = base(prune_interval=400, warmup_steps=1, mixed_precision="bf16")
    less = [s.replace(max_iters=n) for s, n in ((one, 10), (two, 90_000))]
    short, other = brought_down(*less)
    assert (short.pruning.prune_interval, other.pruning.prune_interval) == (2, 1)
    assert (short.optim.warmup_steps, other.optim.warmup_steps) == (2, 1)
    assert short.optim.max_iters < other.optim.max_iters < 50
    assert {s.optim.mixed_precision for s in (short, other)} == {"fp32", "bf16"}
    assert brought_down(one, one) == (brought_down(one, one)[0],) * 2


# ---- the changes of a step --------------------------------------------------------


def found_for(step: Step, over: Settings) -> Finding:
    assert step.parent is not None
    mine, theirs = step_subject(over, step.id), step_subject(over, step.parent)
    return changes(step, mine, theirs, over)


@pytest.fixture
def add_step(monkeypatch: pytest.MonkeyPatch):
    def add(changed: dict[str, Any], parent: int = 0, id: int = 90) -> Step:
        step = Step(id, "new", "A new step", "?", parent, changed)
        monkeypatch.setitem(STEPS, id, step)
        return step

    return add


@pytest.mark.parametrize(
    "changed",
    [
        {"attention": "mla", "latent": "untied"},  # the second needs the first
        {"optimizer": "adamwprune", "prune_method": "state"},  # does nothing alone
        {"ra": True, "ra_window": 32},  # 64 otherwise, which tiny sizes cut alike
        {"ract": True, "ract_topk": 12},  # 8 otherwise
        {"mlp_gate": True, "mechanism_share": 0.1},
    ],
)
def test_changes_that_act_together_are_accepted(add_step, changed) -> None:
    finding = found_for(add_step(changed), base())
    assert finding.passed, finding
    assert finding.figure == f"{len(changed)} act"


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"ra": True, "ract_topk": 12}, "RA_MLA_RACT_TOPK=12 "),
        ({"model_size": "355M"}, "GPT2_MODEL=355M "),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ({"ra": True, "cross_renorm": False}, "RA_MLA_CROSS_RENORM=n "),
                ({"attention": "mla", "rope_dim": 16}, "RA_MLA_ROPE_DIM=16 "),
            )
        ),
    ],
)
def test_a_change_that_nothing_reads_is_refused_by_name(add_step, changed, name):
    finding = found_for(add_step(changed), base())
    assert not finding.passed
    assert finding.detail.startswith(f"{name}")
    assert "changes nothing: logits, gradients" in finding.detail
    assert finding.detail.count("changes nothing") == 1


def test_a_step_cannot_bring_data_of_its_own(add_step) -> None:
    finding = found_for(add_step({"ra": True, "eval_samples": 7}), base())
    assert finding.detail.startswith("GPT2_EVAL_SAMPLES=7 changes no")
    assert "on the same data" in finding.detail


def test_a_step_with_the_values_of_its_parent_is_refused() -> None:
    finding = found_for(STEPS[29], base(ra_window=0))
    assert (
        finding.detail
        == "the same as step 5 as configured: RA_MLA_RA_WINDOW is 0 there already"
    )


def test_a_band_as_wide_as_the_context_is_the_whole_context() -> None:
    """Settings differ and the function does not."""
    over = base(ra_window=64, block_size=64)
    assert "RA_MLA_RA_WINDOW=0" in found_for(STEPS[29], over).detail
    plan = plan_of(over, 5, 29)
    details = [f.detail for f in distinct(subjects(plan)).values()]
    assert details == ["", "is the same model as step05-ra"]


# ---- distinct ---------------------------------------------------------------------


@cache
def plan_of(over: Settings, *steps: int) -> Plan:
    return plan_settings(over.replace(mode="ablation", steps=steps, seeds=(1,)), {})


@pytest.mark.parametrize(
    "order", [(90, 5), pytest.param((5, 90), marks=pytest.mark.slow)]
)
def test_of_two_steps_that_are_one_model_the_later_is_refused(add_step, order) -> None:
    """Whatever fields it sets: the one that this sets is read by nothing."""
    add_step({"ra": True, "cross_tau": 0.9})
    plan = plan_of(base(n_layer=2, n_embd=96, block_size=48), *order)
    messages = {cell.name: cell.message for cell in certify_plan(plan)}
    assert messages["step05-ra"] == ""
    message = messages["step90-new"]
    assert message.startswith("changes: RA_MLA_CROSS_TAU=0.9 changes")
    assert message.endswith("distinct: is the same model as step05-ra")


def test_steps_that_train_one_model_differently_are_distinct() -> None:
    plan = plan_of(base(), 0, 1)
    findings = distinct(subjects(plan)).values()
    assert all(f.passed for f in findings)
    assert len({f.figure for f in findings}) == 1  # as far from each other


def test_a_step_that_crashes_keeps_no_other_from_being_certified(monkeypatch) -> None:
    true = StatisticGate.forward

    def failing(self, statistic):
        assert self.statistic.kind != "max", "no such kernel"
        return true(self, statistic)

    monkeypatch.setattr(StatisticGate, "forward", failing)
    plan = plan_of(base(n_layer=2, n_embd=96, block_size=48), 13, 23)
    good, bad = certify_plan(plan)
    assert good.message == ""
    assert bad.findings["changes"].figure == bad.findings["causal"].figure == "crashed"
    assert "no such kernel" in bad.findings["changes"].detail


def test_training_that_crashes_is_not_taken_for_a_difference() -> None:
    """SPAM refuses a warm-up that never ends; the function is that of step 0."""
    found = subjects(plan_of(base(spam_warmup=4, spam_interval=3), 0, 1))
    first, second = distinct(found).values()
    assert first.passed and not second.passed
    assert second.detail.startswith("not compared with step00-baseline: spam_interval")
