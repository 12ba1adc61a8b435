"""Comparison partners of steps that the registry does not have."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2.report.arms import group_arms, partner_of
from gpt2.report.read_results import read_matrix
from tests.results_factory import write_matrix, write_run


@pytest.mark.parametrize(
    "ancestors, partner, note",
    [
        ([100, 5, 0], 5, "step 100 was not run"),
        ([100, 8, 0], 0, "step 100 was not run"),
        ([5, 0], None, "step 100, its comparison partner, was not run"),
        ([100, "5", None, [0]], None, "step 100, its comparison partner, was not run"),
        ("100", None, "step 100, its comparison partner, was not run"),
    ],
)
def test_the_nearest_recorded_ancestor_is_the_partner(
    tmp_path: Path, ancestors: object, partner: int | None, note: str
) -> None:
    write_matrix(tmp_path, (0, 5), (1,))
    own = {"step": 101, "name": "mine", "parent": 100, "ancestors": ancestors}
    write_run(tmp_path, 29, 1, job=own)
    arms = group_arms(read_matrix(tmp_path))
    mine = next(arm for arm in arms if arm.step == 101)
    found, said = partner_of(mine, arms)
    assert (None if found is None else found.step, said) == (partner, note)
