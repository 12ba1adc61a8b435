"""The trainer makes the updates of the plain formulas; planted faults do not."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from gpt2.train import build_optimizer as optimize
from gpt2.train import finish, trainer, update
from gpt2.train.batches import BatchPlan
from gpt2.train.update import Updater
from gpt2.verify.certify_training import Trained
from gpt2.verify.trainer_updates import certify_updates
from lib.pruning import heads, pruner
from lib.pruning.masks import keep_masks
from lib.pruning.pruner import Pruner
from lib.pruning.registry import METHODS


@pytest.mark.parametrize(
    ("optimizer", "method", "variant"),
    [
        ("sgd", "none", ""),
        ("adamwadv", "magnitude", ""),
        ("adamwspam", "magnitude", ""),
        ("adamw", "movement", ""),
        ("adamwprune", "state", "bitter4"),
        ("muon", "magnitude", ""),
    ],
)
def test_the_trainer_follows_the_plain_formulas(optimizer, method, variant):
    rows = certify_updates(optimizer, method, variant)
    assert all(row.passed for row in rows.values()), rows


@pytest.mark.parametrize("shape", ["sqrt", "linear"])
def test_the_trainer_follows_the_schedule_of_its_cell(monkeypatch, shape):
    subject = Trained("adamw", schedule=shape)
    row = certify_updates("adamw", "none", "", shape)["updates"]
    assert row.passed and subject.name == f"adamw, wsd {shape}"
    monkeypatch.setattr(trainer, "learning_rate", lambda *_: 3e-3)  # no decay at all
    row = certify_updates("adamw", "none", "", shape)["updates"]
    assert not row.passed


def test_they_are_among_the_certificates_of_head_pruning():
    subject = Trained("adamw", "heads")
    rows = subject.certify()
    assert all(row.passed for row in rows.values()), rows
    assert set(rows) == set(subject.columns)


def updates(optimizer="adamw", method="none", variant=""):
    row = certify_updates(optimizer, method, variant)["updates"]
    assert not row.passed, row
    return row.detail


# ---- batches, schedule, gradients -------------------------------------------------


def test_every_batch_used_twice_is_found(monkeypatch):
    true = BatchPlan.step_offsets
    monkeypatch.setattr(
        BatchPlan, "step_offsets", lambda self, step: true(self, step // 2)
    )
    assert "at update 2 deviates" in updates("sgd")


def test_a_micro_batch_used_twice_is_found(monkeypatch):
    true = Updater.accumulate

    def twice(self, data):
        first = next(data)
        next(data)
        return true(self, itertools.repeat(first))

    monkeypatch.setattr(Updater, "accumulate", twice)
    assert "at update 1 deviates" in updates("sgd")


def test_gradients_that_are_summed_and_not_averaged_are_found(monkeypatch):
    true = update.MicroStep
    monkeypatch.setattr(
        update, "MicroStep", lambda *given, share, **named: true(*given, **named)
    )
    assert "the loss is recorded as" in updates("sgd")


def test_a_schedule_that_is_one_update_late_is_found(monkeypatch):
    true = trainer.learning_rate
    monkeypatch.setattr(
        trainer, "learning_rate", lambda n, *rest: true(max(1, n - 1), *rest)
    )
    assert "the learning rate is recorded" in updates()


@pytest.mark.parametrize(
    "change",
    [
        {"beta1": 0.95, "beta2": 0.9},
        {"eps": 1e-3},
        {"weight_decay": 0.0},
        {"grad_clip": 0.0},
    ],
    ids=str,
)
def test_a_setting_that_does_not_arrive_is_found(monkeypatch, change):
    true = Updater.__init__

    def other(self, model, settings, context):
        true(self, model, settings.replace(**change), context)

    monkeypatch.setattr(Updater, "__init__", other)
    # Adam divides out what the clip multiplies by.
    assert "deviates" in updates("sgd" if "grad_clip" in change else "adamw")


@pytest.mark.parametrize("update", [20, 22, 23])
def test_a_phase_of_spam_that_does_not_arrive_is_found(monkeypatch, update):
    """20: spikes are clipped. 22: the moments are reset. 23: the rate rises again."""
    change: dict[str, object] = {"spam_threshold": 2000.0}
    if update > 20:
        interval, warmup = (400, 2) if update == 22 else (22, 1)
        change = {"spam_interval": interval, "spam_warmup": warmup}
    true = optimize.optim_config

    def other(optim):
        return true(dataclasses.replace(optim, **change))

    monkeypatch.setattr(optimize, "optim_config", other)
    assert f"at update {update} deviates" in updates("adamwspam")


def test_position_embeddings_handed_to_muon_are_found(monkeypatch):
    monkeypatch.setattr(optimize, "embedding_names", lambda model: ("wte.weight",))
    assert "wpe.weight" in updates("muon")


@pytest.mark.parametrize(("method", "at"), [("_log", 3), ("_evaluate", 0)])
def test_a_loss_that_is_not_recorded_is_found(monkeypatch, method, at):
    """Nothing is compared then, and so nothing else deviates."""
    true = getattr(trainer.Trainer, method)

    def silent(self):
        if self.progress.step != at:
            true(self)

    monkeypatch.setattr(trainer.Trainer, method, silent)
    assert updates("sgd").startswith("records of losses are")


# ---- masks ------------------------------------------------------------------------


def test_pruning_the_largest_weights_is_found(monkeypatch):
    spec = METHODS["magnitude"]
    largest = dataclasses.replace(spec, score=lambda weight, _: -weight.abs())
    monkeypatch.setitem(METHODS, "magnitude", largest)
    assert "other weights pruned" in updates("adamw", "magnitude")


@pytest.mark.parametrize(
    ("optimizer", "method"), [("adamw", "movement"), ("adamwprune", "state")]
)
def test_keeping_the_lowest_scores_is_found(monkeypatch, optimizer, method):
    monkeypatch.setattr(
        pruner, "keep_masks", lambda scores, n: keep_masks([-s for s in scores], n)
    )
    variant = "bitter7" if method == "state" else ""
    assert "other weights pruned" in updates(optimizer, method, variant)


@pytest.mark.parametrize("variant", ["bitter3", "bitter7"])
def test_exchanged_moments_are_found(monkeypatch, variant):
    true = Pruner._moments

    def exchanged(self, weight):
        moments = true(self, weight)
        return dataclasses.replace(
            moments, first=moments.second, second=moments.first.abs()
        )

    monkeypatch.setattr(Pruner, "_moments", exchanged)
    assert "other weights pruned" in updates("adamwprune", "state", variant)


def test_a_reversed_depth_is_found(monkeypatch):
    true = optimize.depths
    monkeypatch.setattr(
        optimize, "depths", lambda *given: {k: 1 - d for k, d in true(*given).items()}
    )
    assert "other weights pruned" in updates("adamwprune", "state", "bitter4")


def test_heads_of_the_highest_score_are_found(monkeypatch):
    true = heads.head_scores
    monkeypatch.setattr(
        heads, "head_scores", lambda *given: [-score for score in true(*given)]
    )
    assert "other heads pruned" in updates("adamw", "heads")


# ---- export -----------------------------------------------------------------------


def test_an_export_without_masks_is_found(monkeypatch):
    """Pruned weights return in the file, too small to change any logit."""
    true = finish.write_export

    def unmasked(path, model, *rest, **origin):
        for weight in model.blocks[0].parameters():
            with torch.no_grad():
                weight[weight == 0] = 1e-12
        true(path, model, *rest, **origin)

    monkeypatch.setattr(finish, "write_export", unmasked)
    row = certify_updates("adamw", "magnitude", "")["export"]
    assert not row.passed and "pruned weights are not 0" in row.detail


def test_an_export_of_other_weights_is_found(monkeypatch):
    true = finish.write_export

    def older(path, model, *rest, **origin):
        with torch.no_grad():
            model.wpe.weight.mul_(1.1)
        true(path, model, *rest, **origin)

    monkeypatch.setattr(finish, "write_export", older)
    assert not certify_updates("adamw", "none", "")["export"].passed
