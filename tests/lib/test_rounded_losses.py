"""lib/rounded_losses.py: the grid that losses lie on."""

import numpy as np
import pytest

from lib.rounded_losses import resolution, rounding_variance


@pytest.mark.parametrize(
    ("values", "width"),
    [
        ((3.141, 2.718, 3.1, 3.0), 1e-3),
        ((3.25, 3.5, 2.75), 0.25),  # the coarser of a decimal and a binary grid
        ((3.2734375, 3.2890625, 3.296875), 2**-7),  # bfloat16
        ((3.1415925, 2.7182818), 2.0**-22),  # decimals as fine as those of float32
        (tuple(np.float32([3.14159, 2.71828, 3.3]).tolist()), 2.0**-22),
    ],
)
def test_resolution_is_the_grid_of_the_values(values, width):
    assert resolution(values) == pytest.approx(width)


def test_losses_of_full_precision_are_on_no_grid():
    random = np.random.default_rng(8)
    for _ in range(300):
        values = list(3.3 + random.normal(0, 0.0015, size=3))
        assert resolution(values) < 1e-6


def test_variance_of_a_difference_is_that_of_uniform_errors():
    random = np.random.default_rng(1)
    a, b = random.uniform(3, 4, (2, 50_000))
    errors = (np.round(a, 3) - np.round(b, 2)) - (a - b)
    assert np.var(errors) == pytest.approx(rounding_variance(0.001, 0.01), rel=0.02)


def test_there_is_no_grid_without_values():
    assert resolution([]) == resolution([0.0]) == 0.0
