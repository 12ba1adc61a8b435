"""False findings among equal arms at their own best learning rates, simulated."""

from __future__ import annotations

import pytest

from tests.gpt2.report.rate_choice import World, false_findings


@pytest.mark.slow
def test_the_choice_of_a_rate_makes_no_false_findings() -> None:
    """At most 5% and three standard errors; without the other rates far more."""
    studies = 120
    found = false_findings(World(1.0, 0.25, seeds=10), studies)
    assert found["report"] <= 0.05 + 3 * (0.05 * 0.95 / studies) ** 0.5
    assert found["unguarded"] > 0.1 > found["report"]
    assert found["optimism"] < 0
