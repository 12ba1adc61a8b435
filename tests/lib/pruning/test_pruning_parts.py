"""Schedules, selection and the table of what goes with what."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.pruning import reference
from lib.pruning.masks import keep_masks, kth_lowest
from lib.pruning.methods.state import variant_score
from lib.pruning.registry import METHODS, VARIANTS, why_not
from lib.pruning.schedules import head_target, ramp
from lib.pruning.spec import Moments

SAME_RANKING = METHODS["state"].same_ranking
RAMP = {"sparsity": 0.5, "warmup_steps": 200, "interval": 50, "ramp_end": 0.75}


def test_the_ramp_is_the_papers_cubic():
    schedule = ramp(**RAMP, steps=1000)
    assert (schedule.start, schedule.updates, schedule.end) == (200, 11, 750)
    for step in range(1001):
        wanted = reference.sparsity(step, 200, 50, 11, 0.5)
        assert schedule.sparsity(step) == pytest.approx(wanted, abs=1e-15)
    assert schedule.sparsity(1000) == 0.5


def test_masks_change_on_the_cadence_and_nowhere_else():
    schedule = ramp(**RAMP, steps=1000)
    updates = [step for step in range(1001) if schedule.is_update(step)]
    assert updates == list(range(200, 751, 50))
    changes = [
        step
        for step in range(1, 1001)
        if schedule.sparsity(step) != schedule.sparsity(step - 1)
    ]
    assert changes == updates[1:]


def test_the_last_update_comes_before_the_end_of_the_ramp():
    schedule = ramp(**RAMP, steps=1060)
    assert schedule.end == 750 <= 0.75 * 1060
    assert schedule.sparsity(750) == 0.5


@pytest.mark.parametrize(("share", "end"), [(0.57, 2850), (0.69, 3450), (0.7, 3500)])
def test_the_ramp_ends_where_its_share_in_decimals_says(share, end):
    """In binary 0.57 and 0.69 of 5000 are a little less than these."""
    assert ramp(**{**RAMP, "ramp_end": share}, steps=5000).end == end


def test_the_shortest_cadence_is_each_update():
    schedule = ramp(sparsity=0.5, warmup_steps=0, interval=1, ramp_end=1.0, steps=4)
    assert [step for step in range(6) if schedule.is_update(step)] == [0, 1, 2, 3, 4]
    wanted = [0.5 * (1 - (1 - n / 4) ** 3) for n in (0, 1, 2, 3, 4, 4)]
    assert [schedule.sparsity(n) for n in range(6)] == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"steps": 300}, "no mask update fits"),
        ({"sparsity": 0.0}, "sparsity"),
        ({"sparsity": 1.0}, "sparsity"),
        ({"interval": 0}, "interval"),
        ({"warmup_steps": -1}, "warm-up"),
        ({"ramp_end": 1.5}, "ramp end"),
    ],
)
def test_a_ramp_that_would_do_nothing_is_refused(change, word):
    with pytest.raises(ValueError, match=word):
        ramp(**{**RAMP, "steps": 1000, **change})


def test_whole_heads_are_pruned_and_one_a_layer_stays():
    assert head_target(0.5, [4, 4]) == (4, 4)
    assert head_target(0.9, [4, 4]) == (7, 6)
    assert head_target(0.1, [4]) == (0, 0)


numbers = st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, -0.0, 1.0])


@settings(max_examples=25)
@given(st.lists(st.lists(numbers, min_size=1, max_size=6), min_size=1), st.data())
def test_kth_lowest_is_the_kth_of_the_sorted(lists, data):
    scores = [torch.tensor(values, dtype=torch.float32) for values in lists]
    ordered = sorted(value for values in lists for value in values)
    k = data.draw(st.integers(1, len(ordered)))
    assert kth_lowest(scores, k) == ordered[k - 1]
    masks = keep_masks(scores, k)
    assert sum(int((~mask).sum()) for mask in masks) == k
    kept = [s[m].min().item() for s, m in zip(scores, masks, strict=True) if m.any()]
    assert min(kept, default=math.inf) >= ordered[k - 1]


def test_selection_takes_scores_in_any_memory_layout():
    score = torch.tensor([[3.0, 1.0, 1.0], [1.0, 2.0, 0.0]])
    plain, turned = keep_masks([score], 3)[0], keep_masks([score.T.clone().T], 3)[0]
    assert torch.equal(plain, turned)
    assert plain.tolist() == [[True, False, False], [True, True, False]]


def test_variants_said_to_rank_alike_do_and_others_do_not():
    torch.manual_seed(0)
    weight, first = torch.randn(2, 200)
    state = Moments(first, first**2 * torch.rand(200), 50, 0.9)
    order = {
        variant: tuple(variant_score(variant, weight, state).argsort().tolist())
        for variant in VARIANTS
    }
    for variant, twin in SAME_RANKING.items():
        assert order[variant] == order[twin]
    # bitter4 differs from bitter3 by its layers' shares, not by its score.
    distinct = set(VARIANTS) - set(SAME_RANKING) - {"bitter4"}
    assert len({order[variant] for variant in distinct}) == len(distinct)


def test_scores_stay_finite_where_no_gradient_has_come():
    zeros = torch.zeros(3)
    for variant in VARIANTS:
        score = variant_score(variant, torch.ones(3), Moments(zeros, zeros, 1, 0.9))
        assert torch.isfinite(score).all()


def test_impossible_pairs_have_a_reason():
    assert why_not("adamw", "magnitude") is None
    assert why_not("adamwprune", "state") is None
    assert why_not("muon", "movement") is None
    assert "adamwprune" in why_not("adamw", "state")
    assert "adamw" in why_not("adamwprune", "magnitude")
    assert why_not("adamwadv", "heads") is None
    assert "second moment" in why_not("muon", "heads")
    with pytest.raises(ValueError, match="wanda"):
        why_not("adamw", "wanda")
