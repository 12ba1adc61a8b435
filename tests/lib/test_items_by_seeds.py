"""lib/items_by_seeds.py: the error of a mean over items and seeds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as theirs

from lib.items_by_seeds import crossed_mean


def test_one_seed_is_the_t_test_over_items_and_one_item_that_over_seeds() -> None:
    values = [0.1, -0.2, 0.4, 0.3, 0.05]
    for table in ([values], [[value] for value in values]):
        found = crossed_mean(table)
        expected = theirs.ttest_1samp(values, 0.0)
        assert found.p == pytest.approx(expected.pvalue)
        low, high = expected.confidence_interval(0.95)
        assert (found.interval.low, found.interval.high) == pytest.approx((low, high))
        assert found.mean == pytest.approx(np.mean(values))
    assert not crossed_mean([values]).over_seeds
    assert crossed_mean([values, values]).over_seeds


def test_equal_rows_have_the_error_of_their_items() -> None:
    """More seeds that agree do not make the items more."""
    row = [0.1, -0.2, 0.4, 0.3, 0.05]
    one, three = crossed_mean([row]), crossed_mean([row] * 3)
    assert three.error == pytest.approx(one.error)
    assert three.interval.high > one.interval.high  # by the t of 3 seeds


def test_without_spread_or_with_one_number_there_is_no_error() -> None:
    for table in ([[0.3]], [[0.3, 0.3], [0.3, 0.3]], [[0.0] * 9]):
        found = crossed_mean(table)
        assert (found.error, found.interval, found.p) == (None, None, None)
        assert found.mean == pytest.approx(table[0][0])


@pytest.mark.parametrize("table", [[], [[]], [[1.0], [1.0, 2.0]], [[float("nan")]]])
def test_what_is_no_table_is_refused(table: list[list[float]]) -> None:
    with pytest.raises(ValueError):
        crossed_mean(table)


@pytest.mark.parametrize(
    ("by_seed", "by_item", "rest"),
    [(0, 0, 1), (0, 1, 0.2), (1, 0, 0.2), (0.3, 1, 1), (1, 0.1, 2)],
)
def test_differences_that_are_not_there_are_seldom_found(
    by_seed: float, by_item: float, rest: float
) -> None:
    """Whatever the differences come from, 5% of the tests at most are wrong, within
    three standard errors of 1,500 tries."""
    random, wrong, tries = np.random.default_rng(5), 0, 1500
    for _ in range(tries):
        table = by_seed * random.normal(size=(3, 1)) + by_item * random.normal(
            size=(1, 40)
        )
        found = crossed_mean(table + rest * random.normal(size=(3, 40)))
        wrong += found.p < 0.05
    assert wrong / tries < 0.05 + 3 * (0.05 * 0.95 / tries) ** 0.5


def test_a_difference_that_is_there_is_found() -> None:
    random = np.random.default_rng(6)
    table = 0.5 + 0.02 * random.normal(size=(3, 1)) + 0.3 * random.normal(size=(3, 80))
    found = crossed_mean(table)
    assert 0.5 in found.interval and found.p < 0.01
