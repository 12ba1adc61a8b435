"""Losses between two evaluations: nearer than a straight line, and not too certain."""

import math
from itertools import pairwise

import pytest

from gpt2.report.between_evals import read

# Losses that fall ever more slowly, over the share of training that is done.
CURVES = [
    lambda x: 3.0 + 7.0 * math.exp(-9.0 * x),
    lambda x: 1.4 + 2.1 * math.exp(-4.0 * x) + 7.0 * math.exp(-30.0 * x),
    lambda x: 10.9 / (1.0 + 20.0 * x) ** 0.4,
    lambda x: 3.0 + 0.3 * math.cos(math.pi * x / 2 + math.pi) + 0.3,
]


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("evaluations", [4, 8, 20])
def test_the_error_is_within_two_of_its_standard_deviations(curve, evaluations):
    points = [(x / evaluations, curve(x / evaluations)) for x in range(evaluations + 1)]
    errors, of_lines = [], []
    for (start, first), (end, second) in pairwise(points):
        for share in (0.03, 0.3, 0.5, 0.9):
            at = start + share * (end - start)
            found = read(points, at)
            error = found.loss - curve(at)
            assert abs(error) <= 2 * math.sqrt(found.variance) + 1e-9
            errors.append(abs(error))
            of_lines.append(first + share * (second - first) - curve(at))
    assert sum(errors) < sum(of_lines), "than the straight line's, which is too high"


def test_at_an_evaluation_it_is_certain_and_outside_unknown():
    points = [(0.0, 4.0), (1.0, 3.0), (2.0, 2.5)]
    assert [read(points, x) for x, _ in points] == [(4.0, 0.0), (3.0, 0.0), (2.5, 0.0)]
    assert read(points, 2.1) is read(points, -0.1) is read([], 0.0) is None


@pytest.mark.parametrize("last", [2.5, 2.0, 4.5])
def test_a_straight_line_two_evaluations_and_a_rise_are_read_within_both(last):
    """Also where the loss falls faster than before, or rises."""
    points = [(0.0, 4.0), (1.0, 3.0), (2.0, last)]
    for given in (points, points[1:]):
        found = read(given, 1.5)
        assert min(3.0, last) < found.loss < max(3.0, last)
        assert 0.0 <= found.variance <= (3.0 - last) ** 2 / 3


def test_reading_and_variance_by_hand():
    """Of points a unit apart, with slopes -0.8 and -0.3: the curve's in the middle is
    their harmonic mean, its last (3 x -0.3 + 0.8) / 2."""
    points = [(0.0, 4.0), (1.0, 3.2), (2.0, 2.9)]
    middle, last = -2 / (1 / 0.8 + 1 / 0.3), -0.05
    x = 0.1  # Hermite's cubic
    loss = 3.2 * (1 + 2 * x) * (1 - x) ** 2 + middle * x * (1 - x) ** 2
    loss += 2.9 * x**2 * (3 - 2 * x) + last * x**2 * (x - 1)
    # uniform from the line through the two before, 3.12, to that between both, 3.17
    second_moment = ((loss - 3.12) ** 3 + (3.17 - loss) ** 3) / (3 * (3.17 - 3.12))
    found = read(points, 1.1)
    assert found.loss == pytest.approx(loss, rel=1e-12)
    assert found.variance == pytest.approx(second_moment, rel=1e-9)


def test_the_error_vanishes_towards_an_evaluation():
    points = [(x / 4, CURVES[0](x / 4)) for x in range(5)]
    for at in (0.5, 1.0):
        for near in (at - 1e-6, at + 1e-6) if at < 1 else (at - 1e-6,):
            assert math.sqrt(read(points, near).variance) < 1e-4


def test_the_line_through_the_two_after_bounds_the_error():
    """A unit apart, with slopes -2, -0.5 and -0.1. Half way between the middle two,
    that line is at 1.55, above the lower of both, and that through the two before at
    1, below it. The curve's slopes are harmonic means, -0.8 and -1/6."""
    points = [(0.0, 4.0), (1.0, 2.0), (2.0, 1.5), (3.0, 1.4)]
    loss = 1.75 + (-0.8 + 1 / 6) / 8  # Hermite's cubic in the middle
    variance = ((loss - 1.55) ** 3 + (1.75 - loss) ** 3) / (3 * 0.2)
    found = read(points, 1.5)
    assert found.loss == pytest.approx(loss, rel=1e-12)
    assert found.variance == pytest.approx(variance, rel=1e-9)
