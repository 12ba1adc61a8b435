"""Optimizers and pruning methods are certified with the steps that train by them."""

from __future__ import annotations

import json

import pytest

from gpt2.plan.jobs import Plan
from gpt2.plan.planning import make_plan
from gpt2.verify import certify_training
from gpt2.verify.certify_steps import Findings
from gpt2.verify.certify_training import (
    Trained,
    at_hand,
    certify_each,
    everything,
    trained_by,
)
from gpt2.verify.subject import Finding
from lib.forked import forked
from lib.optim.certify import Row
from lib.optim.registry import OPTIMIZERS
from lib.pruning.registry import VARIANTS
from tests.gpt2.helpers import make_config


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(
        make_config(
            TEST_MATRIX_MODE="y",
            TEST_MATRIX_ADAMWPRUNE="y",
            TEST_MATRIX_PRUNING_MAGNITUDE="y",
            TEST_MATRIX_BITTER7="y",
        )
    )


def test_at_hand_is_what_the_jobs_train_with(plan):
    assert [subject.name for subject in at_hand([plan])] == [
        "adamw",
        "adamwprune",
        "adamw + magnitude",
        "adamwprune + bitter0",
        "adamwprune + bitter7",
    ]


def test_step_1_brings_spam_and_magnitude():
    config = make_config(RA_MLA_ABLATION_MODE="y", STEPS="0,1")
    names = [subject.name for subject in at_hand([make_plan(config)])]
    assert names == ["adamw", "adamwspam", "adamwspam + magnitude"]


def test_everything_is_every_optimizer_and_every_possible_pair():
    found = everything()
    alone = [s.optimizer for s in found if s.method == "none"]
    assert alone == list(OPTIMIZERS)
    assert {s.variant for s in found if s.method == "state"} == set(VARIANTS)
    others = [spec for name, spec in OPTIMIZERS.items() if name != "adamwprune"]
    cut = sum(not spec.lacks_moments for spec in others)  # by heads
    expected = len(OPTIMIZERS) + len(others) * 2 + 10 + cut
    assert len(found) == len(set(found)) == expected


def test_findings_are_kept_until_one_fails(tmp_path):
    cache = tmp_path / "certificates.json"
    subject = Trained("adamwprune", "state", "bitter4")
    (first,) = certify_each([subject], cache)
    assert first.ok and set(first.findings) == set(subject.columns)
    stored = json.loads(cache.read_text())
    (cell,) = stored["findings"].values()
    cell["schedule"]["figure"] = "from the cache"
    cache.write_text(json.dumps(stored))
    (again,) = certify_each([subject], cache)
    assert again.findings["schedule"].figure == "from the cache"
    cell["schedule"]["passed"] = False
    cache.write_text(json.dumps(stored))
    (again,) = certify_each([subject], cache)
    assert again.findings == first.findings


def test_a_certificate_that_crashes_has_failed_and_others_are_checked():
    subjects = [Trained("nothing"), Trained("sgd")]
    crashed, other = certify_each(subjects)
    with forked(2) as begin:
        assert list(certify_each(subjects, None, begin)) == [crashed, other]
    assert other.ok and not crashed.ok
    assert "nothing" in crashed.message and "groups: " in crashed.message


def test_cells_are_held_to_the_training_they_are_given(plan):
    steps = [
        Findings(cell, {"causal": Finding(True, "0")})
        for cell in dict.fromkeys(job.cell for job in plan.jobs)
    ]
    bad = Finding(False, "3", "3 weights too many")
    trained = [
        Findings("adamw", {"decay": Finding(True, "0")}),
        Findings("adamwprune + bitter7", {"schedule": bad}),
    ]
    found = certify_training.with_training(steps, [plan], trained)
    failed = {cell.name: cell.message for cell in found if not cell.ok}
    assert list(failed) == ["adamwprune-bitter7-state-50"]
    assert "3 weights too many" in failed["adamwprune-bitter7-state-50"]


def test_every_cell_has_its_optimizer_and_its_pair(plan):
    by_name = {job.name: trained_by(job.settings) for job in plan.jobs}
    assert by_name["adamw-none"] == [Trained("adamw")]
    assert by_name["adamwprune-bitter0-state-50"] == [
        Trained("adamwprune"),
        Trained("adamwprune", "state", "bitter0"),
    ]


@pytest.mark.parametrize("wrong", ["alone", "in the trainer", ""])
def test_of_two_rows_of_one_name_the_failed_one_counts(monkeypatch, wrong):
    """The export is certified twice: of the pruner and of the trainer."""

    def rows(name):
        return lambda *_: {"export": Row(name, name != wrong, 0.0, "")}

    monkeypatch.setattr(certify_training, "certify_heads", rows("alone"))
    monkeypatch.setattr(certify_training, "certify_updates", rows("in the trainer"))
    found = Trained("adamw", "heads").certify()["export"]
    assert found.passed == (not wrong)
    assert found.name == (wrong or "in the trainer")
