"""The pruner's interface: order of calls, scopes, export, refusals."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib.pruning.pruner import Pruner
from lib.pruning.watched import SCHEDULE, SHAPES, STEPS, Case, WatchedTraining


def finished(
    optimizer="adamw", method="magnitude", scope="global", **options
) -> WatchedTraining:
    run = WatchedTraining(Case(optimizer, method, **options), scope)
    for step in range(1, STEPS + 1):
        run.update(step)
    return run


def layer_zeros(run: WatchedTraining) -> list[int]:
    return [int((weight == 0).sum()) for weight in run.prunable.values()]


def test_a_layer_threshold_prunes_each_layer_alike_a_global_one_does_not():
    assert layer_zeros(finished(scope="layer")) == [21, 13]
    across = layer_zeros(finished(scope="global"))
    assert sum(across) == 34
    assert across != [21, 13]


def test_what_is_exported_is_exactly_zero_and_biases_are_whole(tmp_path):
    run = finished("adamwspam")
    path = tmp_path / "model.safetensors"
    save_file({n: w.detach() for n, w in run.weights.items()}, path)
    loaded = load_file(path)
    assert sum(int((loaded[name] == 0).sum()) for name in run.prunable) == 34
    assert run.pruner.zeros() == (34, 56)
    assert run.pruner.pruned() == 34
    assert run.pruner.sparsity() == pytest.approx(34 / 56)
    assert not (loaded["bias"] == 0).any()


def test_a_kept_weight_that_happens_to_be_zero_is_a_zero_but_not_pruned():
    run = finished(method="movement")
    kept = run.pruner.masks["first.weight"].nonzero()[0]
    with torch.no_grad():
        run.weights["first.weight"][tuple(kept)] = 0.0
    assert (run.pruner.zeros()[0], run.pruner.pruned()) == (35, 34)


def test_bitter4_prunes_late_layers_harder():
    run = finished("adamwprune", "state", variant="bitter4")
    assert layer_zeros(run) == [round(0.6 * 0.7 * 35), round(0.6 * 1.3 * 21)]


def test_bitter4_needs_to_know_the_depths():
    run = WatchedTraining(Case("adamwprune", "magnitude"))
    with pytest.raises(AssertionError, match="depth"):
        Pruner(
            run.prunable,
            run.optimizer,
            method="state",
            schedule=SCHEDULE,
            variant="bitter4",
            depth_of={"first.weight": 0.0},
        )


def test_state_by_bitter1_is_magnitude_pruning():
    state = finished("adamwprune", "state", variant="bitter1")
    plain = finished("adamw", "magnitude")
    assert all(torch.equal(state.weights[n], w) for n, w in plain.weights.items())


def test_pruning_changes_what_is_learnt():
    pruned, dense = finished("adamw", "movement"), finished("adamw", "none")
    assert dense.pruner.zeros() == (0, 56)
    assert dense.pruner.state_bytes() == 0
    kept = pruned.weights["first.weight"] != 0
    assert not torch.equal(
        pruned.weights["first.weight"][kept], dense.weights["first.weight"][kept]
    )


def test_movement_keeps_masks_scores_and_shadow():
    weights = sum(
        torch.Size(SHAPES[n]).numel() for n in ("first.weight", "second.weight")
    )
    assert finished(method="movement").pruner.state_bytes() == (1 + 4 + 4) * weights
    assert finished(method="magnitude").pruner.state_bytes() == weights


def test_an_update_left_out_or_done_twice_is_refused():
    run = WatchedTraining(Case("adamw", "magnitude"))
    run.update(1)
    run.backward(2)
    for wrong in (1, 3):
        with pytest.raises(ValueError, match="once"):
            run.pruner.before_update(wrong)
        with pytest.raises(ValueError, match="once"):
            run.pruner.after_update(wrong)


def test_a_checkpoint_of_another_method_or_model_is_refused():
    movement, magnitude = finished(method="movement"), finished(method="magnitude")
    with pytest.raises(ValueError, match="movement"):
        magnitude.pruner.load_state_dict(movement.pruner.state_dict())
    state = magnitude.pruner.state_dict()
    state["masks"].pop("first.weight")
    with pytest.raises(ValueError, match="masks are of another model"):
        magnitude.pruner.load_state_dict(state)


def test_scores_survive_an_update_with_overflown_gradients():
    run = WatchedTraining(Case("adamw", "movement"))
    run.backward(1)
    run.weights["first.weight"].grad[0, 0] = float("inf")
    run.weights["first.weight"].grad[0, 1] = float("nan")
    run.pruner.before_update(1)
    assert torch.isfinite(run.pruner.scores["first.weight"]).all()
    assert run.pruner.scores["first.weight"].abs().sum() > 0


def test_weights_that_are_not_numbers_stop_the_selection():
    run = WatchedTraining(Case("adamw", "magnitude"))
    for step in range(1, SCHEDULE.start):
        run.update(step)
    with torch.no_grad():
        run.weights["first.weight"][0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"first\.weight"):
        run.update(SCHEDULE.start)


def test_no_pruner_does_nothing_where_it_lacks_something():
    run = WatchedTraining(Case("adamw", "magnitude"))
    for options, word in (
        ({"method": "wanda"}, "wanda"),
        ({"method": "magnitude", "scope": "block"}, "block"),
        ({"method": "state", "variant": "bitter10"}, "bitter10"),
        ({"method": "magnitude", "schedule": None}, "schedule"),
        ({"method": "heads"}, "HeadPruner"),
    ):
        with pytest.raises((ValueError, AssertionError), match=word):
            Pruner(run.prunable, run.optimizer, **{"schedule": SCHEDULE, **options})


def overflow(run, step):
    """An update that a loss scaler leaves out, as one in fp16 that overflows."""
    run.backward(step)
    for weight in run.weights.values():
        weight.grad.zero_()
    run.pruner.before_update(step)
    run.pruner.after_update(step)


@pytest.mark.parametrize("has_zero_state", [False, True])
@pytest.mark.parametrize("variant", ["bitter0", "bitter8"])
def test_masks_wait_for_an_optimizer_without_moments(variant, has_zero_state):
    """There is no score as long as every update overflows: neither an error nor the
    first weights by position. torch's fused optimizers have zeros then."""
    case = Case("adamwprune", "state", variant=variant)
    late, usual = WatchedTraining(case), WatchedTraining(case)
    first = SCHEDULE.start + 2 * SCHEDULE.interval + 1
    for step in range(1, first):
        overflow(late, step)
    if has_zero_state:
        for weight in late.weights.values():
            zeros = {
                name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")
            }
            late.optimizer.state[weight] = {"step": torch.tensor(0.0), **zeros}
    assert late.pruner.zeros()[0] == late.pruner.pruned() == 0
    resumed = WatchedTraining(case)
    resumed.optimizer.load_state_dict(late.optimizer.state_dict())
    resumed.pruner.load_state_dict(late.pruner.state_dict())
    for run in (late, resumed):
        run.update(first)
        wanted = sum(count for _, count in run.pruner.targets(first))
        assert run.pruner.pruned() == run.pruner.zeros()[0] == wanted > 0
    for step in range(first + 1, STEPS + 1):
        late.update(step)
    for step in range(1, STEPS + 1):
        usual.update(step)
    assert late.pruner.pruned() == usual.pruner.pruned()
