"""Head pruning passes its certificates; planted faults do not."""

import pytest

from gpt2.model.gpt import GPT
from gpt2.model.heads import without_heads
from gpt2.train.head_removal import RemovalDiffers, remove_heads
from gpt2.verify import certify_heads as certify
from gpt2.verify.certify_training import HEAD_COLUMNS
from lib.gpu.device import select_device
from lib.pruning.heads import HeadLayer, HeadPruner


def test_all_certificates_are_passed():
    rows = certify.certify_heads("adamw")
    assert all(row.passed for row in rows.values()), rows
    assert set(rows) == set(HEAD_COLUMNS) - {"updates"}  # which the trainer makes


@pytest.mark.parametrize("optimizer", ["adam", "adamwadv"])
def test_heads_are_on_schedule_beside_other_optimizers(optimizer):
    row = certify.check_schedule(optimizer)
    assert row.passed, row


class ComputedNotApplied(HeadPruner):
    def _zero_weights(self):
        pass


class OneShort(HeadPruner):
    def targets(self, step):
        return [(names, max(0, count - 1)) for names, count in super().targets(step)]


class TakesTheLast(HeadPruner):
    """All heads of a layer, where the schedule asks for as many."""

    def _update_masks(self, step):
        super()._update_masks(step)
        if self.pruned() == 6:
            next(iter(self.masks.values())).fill_(False)


def forgets_biases(weights, layers, optimizer, **options):
    """A pruner that does not know the biases."""
    known = {
        name: HeadLayer(
            layer.heads, {k: s for k, s in layer.slices.items() if "bias" not in k}
        )
        for name, layer in layers.items()
    }
    return HeadPruner(weights, known, optimizer, **options)


class GradientsLeft(HeadPruner):
    def before_update(self, step):
        pass


class StateLeft(HeadPruner):
    def _zero_state(self):
        pass


class Revives(HeadPruner):
    """Pruned heads get the best score."""

    def _ranked(self, name):
        kept = self.masks[name].tolist()
        return [s if k else 9.0 for s, k in zip(self._scores(name), kept, strict=True)]


class DroppedOnResume(HeadPruner):
    def load_state_dict(self, state):
        self.step = state["step"]


class BestFirst(HeadPruner):
    def _scores(self, name):
        return [-score for score in super()._scores(name)]


class ZeroesKept(HeadPruner):
    """One number of each head that stays goes with the others."""

    def _zero_weights(self):
        super()._zero_weights()
        for layer in self.layers.values():
            part = next(iter(layer.slices.values()))
            part.of(part.parameter, layer.heads)[:, :, 0] = 0.0


class LayerByLayer(HeadPruner):
    """As many as the schedule has, of the first layer all."""

    def _update_masks(self, step):
        left = sum(count for _, count in self.targets(step))
        for mask in self.masks.values():
            mask[:left] = False
            left = max(0, left - len(mask))
        self._zero_state()


class PrunesNothing(HeadPruner):
    def targets(self, step):
        return [(names, 0) for names, _ in super().targets(step)]


class GradientsToState(HeadPruner):
    """Their state in the optimizer is removed in time."""

    def before_update(self, step):
        self._require_next(step)

    def after_update(self, step):
        super().after_update(step)
        self._zero_state()


class GradientsOfKept(HeadPruner):
    def before_update(self, step):
        super().before_update(step)
        next(iter(self.weights.values())).grad.zero_()


class WeightsBack(HeadPruner):
    """Once, and the masks do not tell it."""

    def after_update(self, step):
        super().after_update(step)
        if step == 8:
            for part, heads, _ in self._slices():
                part.of(part.parameter.data, heads).add_(1.0)


class MasksAsNumbers(HeadPruner):
    def state_dict(self):
        masks = {name: mask.float() for name, mask in self.masks.items()}
        return {**super().state_dict(), "masks": masks}


class MovedOnResume(HeadPruner):
    """By too little to choose other heads."""

    def load_state_dict(self, state):
        super().load_state_dict(state)
        next(iter(self.weights.values())).data.mul_(1 + 1e-6)


FAULTS = [
    (ComputedNotApplied, certify.check_schedule, {}),
    (OneShort, certify.check_schedule, {}),
    (TakesTheLast, certify.check_schedule, {"sparsity": certify.HIGH}),
    (forgets_biases, certify.check_schedule, {}),
    (ZeroesKept, certify.check_schedule, {}),
    (LayerByLayer, certify.check_schedule, {"sparsity": certify.HIGH}),
    (HeadPruner, certify.check_schedule, {"sparsity": 0.01}),  # shows nothing
    (PrunesNothing, certify.check_gradients, {}),
    (PrunesNothing, certify.check_permanence, {}),
    (PrunesNothing, certify.check_resume, {}),
    (GradientsToState, certify.check_gradients, {}),
    (GradientsOfKept, certify.check_gradients, {}),
    (WeightsBack, certify.check_permanence, {}),
    (MasksAsNumbers, certify.check_resume, {}),
    (MovedOnResume, certify.check_resume, {}),
    (GradientsLeft, certify.check_gradients, {}),
    (StateLeft, certify.check_gradients, {}),
    (Revives, certify.check_permanence, {}),
    (DroppedOnResume, certify.check_resume, {}),
    (BestFirst, certify.check_scores, {}),
    (ComputedNotApplied, certify.check_export, {}),
]


@pytest.mark.parametrize(("make", "check", "options"), FAULTS)
def test_a_fault_of_the_pruner_is_caught(make, check, options):
    assert not check("adamw", make, **options).passed


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("sparsity", [certify.SPARSITY, certify.HIGH])
def test_a_fault_of_one_scope_and_sparsity_is_caught(scope, sparsity):
    def sometimes(*words, **options):
        final = options["schedule"].final
        wrong = (options["scope"], final) == (scope, sparsity)
        return (OneShort if wrong else HeadPruner)(*words, **options)

    assert not certify.check_schedules("adamw", sometimes).passed


def test_a_score_that_is_not_a_number_is_caught(monkeypatch):
    true = certify.head_scores

    def lost(*given):
        return [*true(*given)[:-1], float("nan")]

    monkeypatch.setattr(certify, "head_scores", lost)
    row = certify.check_scores("adamw")
    assert not row.passed and row.figure == float("inf")


def another_head(model, settings, kept):
    """As many heads are cut out as should be, but not those."""
    return without_heads(model, settings, [[*k[1:], k[0]] for k in kept])


def one_more(model, settings, kept):
    """Of the first layer a pruned head stays, of the second a kept one goes."""
    first, second = (list(layer) for layer in kept)
    first[first.index(False)], second[second.index(True)] = True, False
    return without_heads(model, settings, [first, second])


def nothing(model, settings, kept):
    return model


def new_gates(model, settings, kept):
    """The block before makes the gates of other heads than are left."""
    small = without_heads(model, settings, kept)
    small.blocks[0].mlp.gate.bias.data.add_(0.1)
    return small


@pytest.mark.parametrize("cut", [another_head, one_more, nothing, new_gates])
def test_a_wrong_cut_is_caught(cut):
    assert not certify.check_export("adamw", cut=cut).passed


def end_of_run(cut):
    """Export of a trained model, as at the end of a run."""
    run = certify.PrunedTraining("adamw")
    list(run.updates())
    tokens = run.tokens[0]
    return remove_heads(
        *(run.model, run.settings, run.pruner, tokens, tokens.roll(-1, 1)),
        select_device("cpu"),
        cut,
    )


def test_a_run_does_not_end_with_a_wrong_cut():
    with pytest.raises(RemovalDiffers, match="logits differ by"):
        end_of_run(another_head)


def test_a_run_tells_what_the_cut_brought():
    removal = end_of_run(without_heads)
    result, heads = removal.result, removal.heads
    assert sum(heads) == result["heads_left"] == 4 and result["heads"] == 8
    assert result["heads_by_layer"] == " ".join(map(str, heads))
    # Keys and values, and RA's queries within the band and the row's own, in fp32.
    cached = 4 * 8 * (2 + (4 + 1) / 8) * 4
    assert result["kv_bytes_per_token"] == cached
    assert result["kv_bytes_per_token_before"] == 2 * cached


def test_ties_and_last_heads_chosen_otherwise_are_caught():
    def last_of_equals(scores, pruned):
        turned = [layer[::-1] for layer in scores]
        return [layer[::-1] for layer in certify.keep_heads(turned, pruned)]

    assert not certify.check_selection(last_of_equals).passed


def test_a_pruner_of_layers_without_a_head_to_spare_is_refused():
    settings = certify.tiny("adamw").replace(n_head=1)
    model = GPT(settings)
    with pytest.raises(ValueError, match="every layer has one head"):
        HeadPruner({}, certify.head_layers(model), None, schedule=None)
