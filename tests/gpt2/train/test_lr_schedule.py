"""The learning rate against its closed form, and nothing but the update."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.settings.parse import settings_from
from gpt2.train.lr_schedule import learning_rate
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
