"""False findings among equal arms at their own best learning rates, simulated."""

from __future__ import annotations

import pytest

from tests.gpt2.report.rate_choice import World, false_findings


@pytest.mark.slow
@pytest.mark.parametrize("noise", [1.0, 4.0])
def test_the_choice_of_a_rate_makes_no_false_findings(noise: float) -> None:
    """At most 5% and three standard errors; without the other rates far more.

    noise: of the higher rates, relative to the lower ones.
    """
    studies = 120
    found = false_findings(World(1.0, 0.25, seeds=10, noise=noise), studies)
    assert found["report"] <= 0.05 + 3 * (0.05 * 0.95 / studies) ** 0.5
    assert found["unguarded"] > 0.1 > found["report"]
    assert found["optimism"] < 0
