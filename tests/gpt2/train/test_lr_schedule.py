"""The learning rate against its closed form, and nothing but the update."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.audit.records import rate_at
from gpt2.settings.parse import settings_from
from gpt2.train.lr_schedule import learning_rate, stable_until
from gpt2.verify.plain_training import PlainTraining
from tests.gpt2.tinytraining import tiny_config

OPTIM = replace(
    settings_from(tiny_config()).optim,
    learning_rate=6e-4,
    min_lr=6e-5,
    warmup_steps=10,
    max_iters=110,
)


def test_warm_up_starts_at_a_share_of_the_peak_and_is_linear():
    for update in range(1, 11):
        assert learning_rate(update, OPTIM) == pytest.approx(6e-5 * update, rel=1e-12)


def test_cosine_falls_from_the_peak_to_the_minimum():
    assert learning_rate(10, OPTIM) == 6e-4
    assert learning_rate(60, OPTIM) == pytest.approx((6e-4 + 6e-5) / 2, rel=1e-12)
    assert learning_rate(110, OPTIM) == pytest.approx(6e-5, rel=1e-12)
    quarter = 6e-5 + 5.4e-4 * (1 + math.sqrt(0.5)) / 2
    assert learning_rate(35, OPTIM) == pytest.approx(quarter, rel=1e-12)


def test_without_warm_up_the_cosine_is_all():
    optim = replace(OPTIM, warmup_steps=0, max_iters=4)
    rates = [learning_rate(update, optim) for update in (2, 4)]
    assert rates == pytest.approx([3.3e-4, 6e-5], rel=1e-12)


def test_warm_up_may_fill_the_whole_run():
    optim = replace(OPTIM, warmup_steps=5, max_iters=5)
    assert learning_rate(5, optim) == 6e-4


@given(st.integers(0, 50), st.integers(1, 200), st.floats(0.0, 1.0))
def test_rates_rise_then_fall_and_stay_between_the_bounds(warmup, rest, share):
    peak = OPTIM.learning_rate
    optim = replace(
        OPTIM, warmup_steps=warmup, max_iters=warmup + rest, min_lr=share * peak
    )
    rates = [learning_rate(n, optim) for n in range(1, warmup + rest + 1)]
    rising, falling = rates[:warmup], rates[max(0, warmup - 1) :]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rising)
    assert all(rate >= optim.min_lr * (1 - 1e-12) for rate in falling)


# ---- warm-up, stable, decay -------------------------------------------------------

WSD = replace(OPTIM, lr_schedule="wsd", lr_decay_share=0.2, max_iters=100)


def test_wsd_is_constant_and_then_decays_by_the_square_root():
    assert stable_until(WSD) == 80
    assert [learning_rate(n, WSD) for n in (5, 10, 11, 79, 80)] == [3e-4, *[6e-4] * 4]
    quarter = 6e-5 + 5.4e-4 * (1 - math.sqrt(0.25))
    assert learning_rate(85, WSD) == pytest.approx(quarter, rel=1e-12)
    assert learning_rate(100, WSD) == 6e-5
    linear = replace(WSD, lr_decay_shape="linear")
    assert learning_rate(85, linear) == pytest.approx(6e-5 + 5.4e-4 * 0.75, rel=1e-12)


def test_wsd_of_all_lengths_is_the_same_until_the_decay():
    longer = replace(WSD, max_iters=1000)
    same = [learning_rate(n, WSD) == learning_rate(n, longer) for n in range(1, 101)]
    assert same == [True] * 80 + [False] * 20


def test_wsd_of_a_time_budget_decays_in_the_last_share_of_it():
    rates = [learning_rate(50, WSD, share) for share in (0.0, 0.8, 0.85, 1.0, 1.5)]
    assert rates == pytest.approx([6e-4, 6e-4, 3.3e-4, 6e-5, 6e-5], rel=1e-9)
    assert learning_rate(5, WSD, 0.5) == pytest.approx(3e-4)


@given(
    st.integers(0, 30),
    st.integers(1, 60),
    st.sampled_from(["cosine", "wsd"]),
    st.floats(0.001, 1.0),
    st.sampled_from(["sqrt", "linear"]),
    st.one_of(st.none(), st.floats(0.0, 2.0)),
)
def test_the_audit_and_the_certificates_have_the_same_rates(
    warmup, rest, kind, share, shape, spent
):
    """Three implementations, none of which imports another."""
    optim = replace(
        OPTIM, warmup_steps=warmup, max_iters=warmup + rest, lr_schedule=kind
    )
    optim = replace(optim, lr_decay_share=share, lr_decay_shape=shape)
    plain: Any = PlainTraining.__new__(PlainTraining)
    plain.settings = SimpleNamespace(optim=optim)
    for update in range(1, optim.max_iters + 1):
        mine = learning_rate(update, optim, spent)
        assert rate_at(update, optim, spent) == pytest.approx(mine, rel=1e-9, abs=1e-15)
        if spent is None:
            assert plain._rate(update) == pytest.approx(mine, rel=1e-9)
