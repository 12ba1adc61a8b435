"""Every pruning method passes its certificates; planted faults do not."""

from dataclasses import replace

import pytest
import torch

from lib.pruning import certify
from lib.pruning.masks import keep_masks, kth_lowest
from lib.pruning.pruner import Pruner
from lib.pruning.registry import METHODS as KINDS
from lib.pruning.registry import SCOPES, VARIANTS, pairs
from lib.pruning.watched import SCHEDULE, Case

PAIRS = [(name, method) for name, method in pairs() if not KINDS[method].is_structured]
METHODS = [("adamw", "magnitude"), ("adamw", "movement"), ("adamwprune", "state")]


@pytest.mark.parametrize(("optimizer", "method"), PAIRS)
@pytest.mark.parametrize("scope", SCOPES)
def test_zeros_are_on_schedule_at_every_update(optimizer, method, scope):
    row = certify.check_schedule(Case(optimizer, method), scope)
    assert row.passed, row


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_on_schedule(variant):
    row = certify.check_schedule(Case("adamwprune", "state", variant=variant))
    assert row.passed, row


@pytest.mark.parametrize(("optimizer", "method"), METHODS)
def test_gradients_state_permanence_and_resume(optimizer, method):
    rows = [
        certify.check_gradients(Case(optimizer, method)),
        certify.check_permanence(Case(optimizer, method)),
        certify.check_resume(Case(optimizer, method)),
    ]
    assert all(row.passed for row in rows), rows


@pytest.mark.parametrize("optimizer", ["sgd", "adamwspam", "muon"])
@pytest.mark.parametrize("method", ["magnitude", "movement"])
def test_resume_is_exact_beside_other_optimizers(optimizer, method):
    row = certify.check_resume(Case(optimizer, method))
    assert row.passed, row


def test_movement_scores_selection_and_formulas():
    rows = [
        certify.check_sums(Case("adamw", "movement")),
        certify.check_scores("state"),
        certify.check_scores("magnitude"),
        certify.check_selection(),
    ]
    assert all(row.passed for row in rows), rows


class ComputedNotApplied(Pruner):
    def _zero_weights(self):
        pass


class OneShort(Pruner):
    """Two weights too few, as a threshold that spares ties would leave."""

    def targets(self, step):
        return [(names, max(0, count - 2)) for names, count in super().targets(step)]


class OnceTooFew(OneShort):
    """At one update of the masks, which the next makes up for."""

    def targets(self, step):
        late = SCHEDULE.start + SCHEDULE.interval
        if step // SCHEDULE.interval == late // SCHEDULE.interval:
            return super().targets(step)
        return Pruner.targets(self, step)


class PrunesNothing(Pruner):
    def targets(self, step):
        return [(names, 0) for names, _ in super().targets(step)]


class KeepsEarlier(Pruner):
    """Aside is the value before the update at which a weight was pruned."""

    def before_update(self, step):
        super().before_update(step)
        self.earlier = {n: w.detach().clone() for n, w in self.weights.items()}

    def _adopt(self, name, mask):
        gone = self.masks[name] & ~mask
        super()._adopt(name, mask)
        self.shadow[name] = self.earlier[name].where(gone, self.shadow[name])


class GradientsLeft(Pruner):
    def before_update(self, step):
        pass


class StateLeft(Pruner):
    def _adopt(self, name, mask):
        self.masks[name] = mask


class DroppedOnResume(Pruner):
    def load_state_dict(self, state):
        self.step = state["step"]


class ScoresDroppedOnResume(Pruner):
    def load_state_dict(self, state):
        zeros = {name: torch.zeros_like(s) for name, s in state["scores"].items()}
        super().load_state_dict({**state, "scores": zeros})


class ForgetsPruned(Pruner):
    """Movement as if the weight beneath the mask were 0."""

    def _adopt(self, name, mask):
        super()._adopt(name, mask)
        self.shadow[name].zero_()


class Revives(Pruner):
    """Masks chosen again each time by magnitude before the weights were zeroed."""

    def _ranked(self, name):
        score = super()._ranked(name)
        return torch.where(torch.isinf(score), torch.full_like(score, 9.0), score)


FAULTS = [
    (ComputedNotApplied, certify.check_schedule, "magnitude"),
    (ComputedNotApplied, certify.check_schedule, "movement"),
    (OneShort, certify.check_schedule, "magnitude"),
    (OnceTooFew, certify.check_schedule, "magnitude"),
    (PrunesNothing, certify.check_gradients, "magnitude"),
    (PrunesNothing, certify.check_permanence, "magnitude"),
    (KeepsEarlier, certify.check_permanence, "movement"),
    (GradientsLeft, certify.check_gradients, "magnitude"),
    (GradientsLeft, certify.check_gradients, "state"),
    (StateLeft, certify.check_gradients, "magnitude"),
    (StateLeft, certify.check_gradients, "state"),
    (DroppedOnResume, certify.check_resume, "magnitude"),
    (DroppedOnResume, certify.check_resume, "movement"),
    (DroppedOnResume, certify.check_resume, "state"),
    (ScoresDroppedOnResume, certify.check_resume, "movement"),
    (ForgetsPruned, certify.check_permanence, "movement"),
    (Revives, certify.check_permanence, "magnitude"),
]


@pytest.mark.parametrize(("kind", "check", "method"), FAULTS)
def test_a_fault_is_caught(kind, check, method):
    optimizer = "adamwprune" if method == "state" else "adamw"
    assert not check(Case(optimizer, method, kind)).passed


@pytest.mark.parametrize(("optimizer", "method"), METHODS)
def test_masks_follow_the_scores_of_the_reference(optimizer, method):
    row = certify.check_masks(Case(optimizer, method))
    assert row.passed, row


class HighestFirst(Pruner):
    def _score(self, name):
        return -super()._score(name)


class HighestFirstOfALayer(HighestFirst):
    def _score(self, name):
        score = super()._score(name)
        return score if self.scope == "layer" else -score


class ExchangedMoments(Pruner):
    def _moments(self, weight):
        found = super()._moments(weight)
        return replace(found, first=found.second, second=found.first.abs())


@pytest.mark.parametrize("kind", [HighestFirst, HighestFirstOfALayer, ForgetsPruned])
def test_masks_against_the_scores_are_caught(kind):
    for optimizer, method in METHODS:
        if kind is not ForgetsPruned or method == "movement":
            assert not certify.check_masks(Case(optimizer, method, kind)).passed


@pytest.mark.parametrize("variant", sorted(set(VARIANTS) - {"bitter1", "bitter2"}))
def test_scores_of_other_moments_are_caught(variant):
    """Those two score by the weight alone."""
    row = certify.check_masks(Case("adamwprune", "state", ExchangedMoments, variant))
    assert not row.passed


def test_movement_with_masked_weights_is_caught():
    assert not certify.check_sums(Case("adamw", "movement", ForgetsPruned)).passed


class LosesASum(Pruner):
    """Of the second matrix, after the last masks, which refuse NaN."""

    def _accumulate(self):
        super()._accumulate()
        if self.step >= SCHEDULE.end:
            self.scores["second.weight"][0, 0] = float("nan")


def test_scores_that_are_not_numbers_are_caught(monkeypatch):
    assert not certify.check_sums(Case("adamw", "movement", LosesASum)).passed
    spec = KINDS["state"]
    right = spec.score
    assert right is not None

    def score(weight, inputs):
        found = right(weight, inputs)
        return found * (float("nan") if inputs.variant == "bitter1" else 1)

    monkeypatch.setitem(KINDS, "state", replace(spec, score=score))
    row = certify.check_scores("state")
    assert not row.passed and row.detail == "worst is bitter1"


def test_a_selection_that_never_takes_all_is_caught():
    def spares_one(scores, pruned):
        return keep_masks(scores, min(pruned, sum(s.numel() for s in scores) - 1))

    assert not certify.check_selection(select=spares_one).passed


def test_a_threshold_that_takes_or_spares_all_ties_is_caught():
    def takes_all(scores, pruned):
        bound = kth_lowest(scores, pruned) if pruned else -float("inf")
        return [score > bound for score in scores]

    def spares_all(scores, pruned):
        bound = kth_lowest(scores, pruned) if pruned else -float("inf")
        return [score >= bound for score in scores]

    for fault in (takes_all, spares_all):
        assert not certify.check_selection(select=fault).passed
