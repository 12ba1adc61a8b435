"""Numbers for people."""

import pytest

from lib import human


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"), (0, "0"), (7, "7"), (0.25, "0.25"), (999, "999"), (1000, "1.0k"),
        (999_960, "1.0M"), (124_000_000, "124.0M"), (-2_500, "-2.5k"), (3e18, "3000P"),
    ],
)  # fmt: skip
def test_counts(value, shown):
    assert human.count(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (12, "12 B"), (36_864, "36.0 KiB"), (9 << 30, "9.0 GiB")],
)
def test_sizes(value, shown):
    assert human.size(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0.4, "0.4 s"), (59.7, "1:00"), (65, "1:05"), (3700, "1:01:40")],
)
def test_durations(value, shown):
    assert human.duration(value) == shown


def test_signs_are_typographic_only_where_asked_for():
    assert human.fixed(-0.5, 2, sign=True) == "−0.50"
    assert human.fixed(0.5, 2, sign=True) == "+0.50"
    assert human.fixed(-0.5, 2) == "-0.50"
    assert human.percent(0.3521) == "35.2%"


def test_one_of_a_kind_has_no_s() -> None:
    found = [human.counted(number, "run") for number in (0, 1, 1200)]
    assert found == ["0 runs", "1 run", "1,200 runs"]
