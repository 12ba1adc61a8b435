"""Reports of runs with a time budget (TIME_BUDGET)."""

from dataclasses import replace

import pytest

from gpt2.report.checklist import checklist
from gpt2.report.grades import SUPPORTED, UNMATCHED
from gpt2.report.html import html_report
from gpt2.report.markdown import markdown_report
from gpt2.report.read_results import read_matrix
from gpt2.report.verdicts import judge
from lib import human
from tests.results_factory import settings, write_matrix, write_run


def write_timed(root, steps=(0, 5), budget="30s", **run):
    """Runs that each ended after their own number of updates."""
    for step in steps:
        for seed in range(3):
            plain = settings(step)
            plain["optim"] |= {"time_budget": budget, "max_iters": 10**8}
            tokens = 13_000_000 - 2_000_000 * (step == 5) + 100_000 * seed
            more = {"result": {"tokens": tokens}, "effect": -0.05 * (step == 5), **run}
            write_run(root, step, seed, job={"settings": plain}, **more)


def test_runs_with_a_time_budget_are_compared_at_their_ends(tmp_path):
    write_timed(tmp_path)
    matrix = read_matrix(tmp_path)
    judged = judge(matrix)
    (found,) = judged.comparisons
    items = {item.name: item for item in checklist(matrix, judged)}
    assert items["training tokens"].ok
    for verdict in (found.at_steps, found.at_time):
        assert verdict.grade == SUPPORTED and verdict.mean == pytest.approx(
            -0.05, abs=0.01
        )
    assert (found.at_steps.seconds, found.at_time.seconds) == (None, 30.0)


def test_a_time_budget_has_one_verdict_and_says_nothing_of_equal_updates(tmp_path):
    """With three arms the pooled test decides, as for all final losses."""
    write_timed(tmp_path, (0, 5, 8))
    matrix = read_matrix(tmp_path)
    judged = judge(matrix)
    for found in judged.comparisons:
        assert found.at_steps.p_pooled is not None
        assert found.at_time == replace(found.at_steps, seconds=30.0)
    pages = markdown_report(matrix, judged, "x"), html_report(matrix, judged, "x")
    for page in pages:
        assert "t equal time" in page and "equal updates" not in page
        assert "All runs have a time budget" in page
    assert "| arm | compared with | time budget | equal time |" in pages[0]
    assert 'name="measure" value="steps"' not in pages[1]


def test_time_budgets_among_other_runs_have_no_difference_at_equal_updates(tmp_path):
    write_timed(tmp_path / "a", (0, 5))
    write_matrix(tmp_path / "b", (0, 5), range(3))
    timed, plain = (judge(read_matrix(tmp_path / x)) for x in "ab")
    both = replace(plain, comparisons=timed.comparisons + plain.comparisons)
    page = markdown_report(read_matrix(tmp_path / "b"), both, "x")
    assert "## At equal updates and at equal time" in page
    rows = [line.split(" | ") for line in page.splitlines() if "0:30" in line]
    assert [row[2:4] for row in rows] == [[human.NONE] * 2]


def test_time_budgets_are_equal_in_seconds(tmp_path):
    write_timed(tmp_path, (0,), "60s")
    write_timed(tmp_path, (5,), "1m")
    (found,) = judge(read_matrix(tmp_path)).comparisons
    assert found.at_time.seconds == 60.0 and found.at_steps.grade == SUPPORTED


def test_unequal_time_budgets_or_machines_are_unmatched(tmp_path):
    other = {"device": {"name": "NVIDIA H100"}}
    for name, changes, why in (
        ("budget", {"budget": "40s"}, "tokens differ"),
        ("machine", {"manifest": other}, "run on different hardware"),
    ):
        write_timed(tmp_path / name, (0,))
        write_timed(tmp_path / name, (5,), **changes)
        (found,) = judge(read_matrix(tmp_path / name)).comparisons
        assert found.at_steps.grade == UNMATCHED
        assert why in found.at_steps.reasons[0]
