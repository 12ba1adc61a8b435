"""gpt2/report/noise.py: numbers of seeds that reach the power of the rules."""

import math

import pytest

from gpt2.report.evidence import Rules
from gpt2.report.noise import (
    Design,
    Family,
    PlannedTest,
    is_known,
    seeds_to_decide,
)
from lib import sequential, stats


def seeds(
    delta: float, sd: float, alpha: float = 0.05, margin: float = 0.0
) -> stats.Seeds | None:
    test = PlannedTest(Rules(alpha=alpha), Family(1), is_pooled=False)
    return test.seeds_to_find(delta, sd, margin)


def test_planner_returns_the_first_number_that_reaches_the_power():
    for alpha in (0.05, 0.05 / 11):
        n = seeds(0.003, 0.0027, alpha).first
        assert stats.power_of_difference(0.003, 0.0027, n, alpha) >= 0.8
        assert stats.power_of_difference(0.003, 0.0027, n - 1, alpha) < 0.8


def test_planner_on_the_noise_known_at_124m():
    # Large-sample arithmetic says 3 to 7 for 0.003; Student's t costs 2 to 3 more.
    quiet = seeds(0.003, math.sqrt(2) * 0.0013)
    loud = seeds(0.003, math.sqrt(2) * 0.0019)
    assert (quiet.first, loud.first) == (6, 9)


def test_planner_gives_up_in_words_not_in_a_loop():
    assert seeds(1e-9, 1.0) is None
    assert seeds(0.0, 0.001) is None
    assert (
        PlannedTest(Rules(margin=0.003), Family(1)).seeds_to_exclude(0.004, 0.001)
        is None
    )
    assert seeds(1.0, 1e-9) == stats.Seeds(3)
    assert seeds(1.0, 0.0) == stats.Seeds(3)


@pytest.mark.parametrize("share", [0.5, 0.8, 0.87, 0.95])
@pytest.mark.parametrize("sd", [0.0004, 0.001])
def test_within_the_margin_the_planner_finds_what_counting_upwards_finds(share, sd):
    """There the power rises and falls with n, so that a doubling search jumps it."""
    delta, margin = share * 0.003, 0.003
    powers = {
        n: stats.power_of_difference(delta, sd, n, 0.05, margin) for n in range(3, 400)
    }
    enough = [n for n, power in powers.items() if power >= 0.8]
    found = seeds(delta, sd, margin=margin)
    if not enough:
        assert found is None
    else:
        assert found.first == enough[0]
        last = next((n for n in range(enough[0], 400) if n not in enough), None)
        assert found.last == (last and last - 1) or last is None


def test_the_window_of_the_case_that_was_jumped():
    found = seeds(0.0026, 2**0.5 * 0.00070711, margin=0.003)
    assert found == stats.Seeds(5, 5)


def test_a_verdict_that_is_open_needs_more_seeds_than_it_has():
    design = Design(PlannedTest(Rules(), Family(1), is_pooled=False), None)
    for gains in ([-0.051, -0.05, -0.049], [-0.051, -0.05, -0.049, -0.05, -0.05]):
        found = seeds_to_decide(gains, design)
        assert found is not None and found[0] == len(gains) + 1


@pytest.mark.parametrize(("is_pooled", "rows"), [(False, 2), (True, 4)])
def test_a_pooled_test_of_a_series_has_a_row_for_each_arm_and_the_baseline(
    is_pooled, rows
):
    rules = Rules()
    test = PlannedTest(rules, Family(3, level=0.01), is_pooled)
    found, alpha = test.power(0.004, 0.002, 5, 0.0), rules.alpha_of_look
    assert found == sequential.power(0.004, 0.002, 5, rows, alpha, 0.01)
    assert found != sequential.power(0.004, 0.002, 5, 3, alpha, 0.01)


def test_the_known_noise_is_that_of_known_sizes():
    sizes = [None, 99e6, 100e6, 124e6, 150e6, 151e6]
    assert [is_known(n) for n in sizes] == [False, False, True, True, True, False]
