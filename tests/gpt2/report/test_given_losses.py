"""Verdicts on losses that are given as numbers."""

import json
import math

import pytest

from gpt2.report.evidence import Rules
from gpt2.report.given_losses import judge_losses
from gpt2.report.read_results import read_matrix
from gpt2.report.verdicts import judge
from tests.results_factory import write_matrix


def test_they_are_graded_as_those_of_a_results_folder(tmp_path):
    effects = {5: 0.03, 8: -0.03, 29: 0.0015}
    write_matrix(tmp_path, (0, 5, 8, 29), (1, 2, 3, 4), effects)
    for path in tmp_path.glob("step29*/*/job.json"):  # its partner is step 5
        path.write_text(json.dumps({**json.loads(path.read_text()), "parent": 0}))
    judged = judge(read_matrix(tmp_path))
    losses = {arm.name: arm.by_seed("val_loss") for arm in judged.arms}
    found = judge_losses(losses, "baseline")
    assert found == {c.arm.name: c.at_steps for c in judged.comparisons}
    assert {v.grade for v in found.values()} >= {"SUPPORTED", "HARMFUL"}


def test_few_seeds_and_rules():
    losses = {"a": {1: 3.01, 2: 3.02}, "b": {1: 2.513, 2: 2.527}}
    found = judge_losses(losses, "a")["b"]
    assert found.grade == "INCONCLUSIVE" and "two seeds" in found.reasons[0]
    assert found.mean == pytest.approx(-0.495)
    third = {name: {**of, 3: of[1] + 0.0042} for name, of in losses.items()}
    assert judge_losses(third, "a")["b"].grade == "SUPPORTED"
    assert judge_losses(third, "a", Rules(margin=2.0))["b"].grade == "NEUTRAL"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({1: 3.0}, r"b has the seeds \[1\], but a has \[1, 2\]"),
        ({1: 3.0, 2: math.nan}, "b has a loss that is not finite"),
    ],
)
def test_faults_are_refused(other, said):
    with pytest.raises(ValueError, match=said):
        judge_losses({"a": {1: 3.0, 2: 3.1}, "b": other}, "a")
    with pytest.raises(ValueError, match="no arm 'c' among a"):
        judge_losses({"a": {1: 3.0}}, "c")
