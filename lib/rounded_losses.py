"""Rounded losses: the grid they lie on, and the variance that rounding adds.

Free of numpy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

# Grids finer than 1e-6 and 2^-18 are not looked for.
GRIDS = (*(10.0**-k for k in range(7)), *(2.0**-k for k in range(19)))


def resolution(values: Sequence[float]) -> float:
    """Width of the coarsest grid, decimal or binary, that holds all the values.

    At least the spacing of float32 there, in which losses are computed. 0.001 for
    losses of three decimals; 2^-7 for losses between 1 and 2 in bfloat16.
    """
    largest = max(map(abs, values), default=0.0)
    if largest == 0:
        return 0.0
    spacing: float = 2.0 ** (math.frexp(largest)[1] - 24)
    fitting = (w for w in GRIDS if all(_is_multiple(x, w) for x in values))
    return max([spacing, *fitting])


def _is_multiple(value: float, width: float) -> bool:
    steps = value / width
    return abs(steps - round(steps)) < 1e-9 * max(1.0, abs(steps))


def rounding_variance(*resolutions: float) -> float:
    """Variance of a sum or difference of values rounded to these widths: each error is
    uniform, of variance width^2 / 12."""
    return math.fsum(width**2 for width in resolutions) / 12
