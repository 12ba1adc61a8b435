"""Sequential family: order, levels and record of its tests on results folders."""

from __future__ import annotations

import json
import math
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from gpt2.report.evidence import Rules
from gpt2.report.grades import (
    HARMFUL,
    INCONCLUSIVE,
    INVALID,
    NEUTRAL,
    SUPPORTED,
    Differences,
    Verdict,
    grade_test,
)
from gpt2.report.html import html_report
from gpt2.report.markdown import markdown_report
from gpt2.report.merge import merge
from gpt2.report.read_results import read_matrix
from gpt2.report.series import LEDGER_FILE, SeriesTest, read_series
from gpt2.report.verdict_rules import rules_for
from gpt2.report.verdicts import Judgement, judge_and_record
from lib import sequential, stats
from tests.results_factory import write_matrix, write_run

SEEDS = (1, 2, 3)


def judged(root: Path, family: str = "sequential", **rules: Any) -> Judgement:
    return judge_and_record(read_matrix(root), Rules(family=family, **rules))


def verdicts(found: Judgement) -> dict[int | None, Verdict]:
    return {c.arm.step: c.at_steps for c in found.comparisons}


def ledger(root: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((root / LEDGER_FILE).read_text())["tests"]
    return found


def test_an_arm_keeps_its_test_when_others_follow(tmp_path: Path) -> None:
    write_matrix(tmp_path, (0, 5), SEEDS, effects={5: -0.03})
    first = verdicts(judged(tmp_path))[5]
    assert (first.test, first.level) == (1, sequential.fallback_level(0.05, [], []))
    (before,) = ledger(tmp_path)
    write_matrix(tmp_path, (8,), SEEDS, effects={8: 0.0})
    write_matrix(tmp_path, (29,), SEEDS, effects={29: -0.2})
    for _ in range(2):  # a report on the same runs tests nothing again
        found = verdicts(judged(tmp_path))
        assert found[5] == first and ledger(tmp_path)[0] == before
        assert [found[step].test for step in (5, 8, 29)] == [1, 2, 3]
    # Step 5 was found, so that the second test has its level too; step 8 was not.
    assert first.grade == SUPPORTED and found[8].grade == INCONCLUSIVE
    gamma = sequential.gamma
    levels = [0.05 * gamma(1), 0.05 * (gamma(1) + gamma(2)), 0.05 * gamma(3)]
    assert [test["level"] for test in ledger(tmp_path)] == pytest.approx(levels)


def test_a_difference_is_found_at_the_level_of_its_test(tmp_path: Path) -> None:
    write_matrix(tmp_path, (0, 5), SEEDS, effects={5: -0.03})
    found = verdicts(judged(tmp_path))[5]
    p, level = stats.t_test(found.differences), found.level
    assert p is not None and level is not None
    assert found.p_series == pytest.approx(p * 0.05 / level, rel=1e-4)
    assert (found.grade == SUPPORTED) == (p <= level)
    interval = stats.t_interval(found.differences, level)
    assert interval is not None and found.family_interval is not None
    assert found.family_interval.low == pytest.approx(interval.low, rel=1e-4)
    assert found.p_holm is None and found.p_pooled is None


def test_more_seeds_and_other_losses_are_further_tests(tmp_path: Path) -> None:
    write_matrix(tmp_path, (0, 5), SEEDS)
    judged(tmp_path)
    write_matrix(tmp_path, (0, 5), (4,))
    assert verdicts(judged(tmp_path))[5].test == 2
    shutil.rmtree(tmp_path / "step05-ra" / "seed4")
    write_run(tmp_path, 5, 4, effect=-0.001)  # the run was repeated
    assert verdicts(judged(tmp_path))[5].test == 3
    assert [test["seeds"] for test in ledger(tmp_path)] == [
        [1, 2, 3],
        [1, 2, 3, 4],
        [1, 2, 3, 4],
    ]


def test_what_cannot_be_graded_spends_no_level(tmp_path: Path) -> None:
    write_matrix(tmp_path, (0, 2, 5), SEEDS)  # 2 has other parameters
    write_run(tmp_path, 5, 4, status="running")
    write_matrix(tmp_path, (8,), SEEDS, verified=None)
    write_matrix(tmp_path, (29,), SEEDS[:2])
    found = judged(tmp_path)
    assert not (tmp_path / LEDGER_FILE).exists()
    assert all(
        v.test is None and v.p_deciding is None for v in verdicts(found).values()
    )
    shutil.rmtree(tmp_path / "step05-ra" / "seed4")
    assert verdicts(judged(tmp_path))[5].test == 1


def test_a_control_that_differs_spends_no_level(tmp_path: Path) -> None:
    write_matrix(tmp_path, (0, 5), SEEDS, control=0.5)
    found = judged(tmp_path)
    assert found.void and verdicts(found)[5].grade == INVALID
    assert not (tmp_path / LEDGER_FILE).exists()


def test_findings_raise_the_levels_of_the_false_discovery_rate(tmp_path: Path) -> None:
    write_matrix(tmp_path, (0, 5, 8), SEEDS, effects={5: -0.3, 8: 0.0})
    judged(tmp_path, "sequential-fdr")
    first, second = (test["level"] for test in ledger(tmp_path))
    assert first == pytest.approx(0.025 * sequential.gamma(1))
    want = 0.025 * sequential.gamma(2) + 0.025 * sequential.gamma(1)
    assert second == pytest.approx(want)


def test_a_folder_keeps_the_rules_of_its_series(tmp_path: Path) -> None:
    write_matrix(tmp_path, (0, 5), SEEDS)
    judged(tmp_path)
    assert judged(tmp_path, "together").rules.family == "sequential"
    with pytest.raises(ValueError, match="FAMILY=sequential-fdr, but .* cannot change"):
        judged(tmp_path, "sequential-fdr")
    with pytest.raises(ValueError, match=r"alpha 0.1, but .* with alpha 0.05"):
        judged(tmp_path, alpha=0.1)
    with pytest.raises(ValueError, match="REPORT_LOOKS must be 1"):
        Rules(family="sequential", looks=3)
    with pytest.raises(ValueError, match="family='holm' must be one of together"):
        Rules(family="holm")


@pytest.mark.parametrize("damage", ["{", '{"schema": 1}', "level", "number"])
def test_a_damaged_record_is_refused(tmp_path: Path, damage: str) -> None:
    write_matrix(tmp_path, (0, 5), SEEDS)
    judged(tmp_path)
    path = tmp_path / LEDGER_FILE
    data = json.loads(path.read_text())
    if damage in data["tests"][0]:
        data["tests"][0][damage] = 7
        damage = json.dumps(data)
    path.write_text(damage)
    with pytest.raises(ValueError, match="restore it from a copy"):
        judged(tmp_path)
    assert path.read_text() == damage


def test_reports_at_the_same_time_give_each_test_once(tmp_path: Path) -> None:
    write_matrix(tmp_path, (0, 5, 8), SEEDS)
    threads = [threading.Thread(target=judged, args=(tmp_path,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tests = ledger(tmp_path)
    assert [test["number"] for test in tests] == [1, 2]
    assert len({test["key"] for test in tests}) == 2


def test_report_says_what_is_promised(tmp_path: Path) -> None:
    write_matrix(tmp_path, (0, 5), SEEDS, effects={5: -0.03})
    found = judged(tmp_path)
    matrix = read_matrix(tmp_path)
    pages = markdown_report(matrix, found, "x"), html_report(matrix, found, "x")
    for page in pages:
        flat = " ".join(page.split())
        assert "Sequential family: 1 test so far, of which 1 found" in flat
        assert "any false finding in the whole series" in flat
        assert "1 at 2.2%" in flat and "Holm" not in flat.partition('id="data"')[0]
    fdr = write_matrix(tmp_path / "fdr", (0, 5), SEEDS)
    text = markdown_report(read_matrix(fdr), judged(fdr, "sequential-fdr"), "x")
    assert "at most 5% of the findings are false" in " ".join(text.split())


def test_merged_folders_carry_the_series_on(tmp_path: Path) -> None:
    a = write_matrix(tmp_path / "a", (0, 5), SEEDS)
    b = write_matrix(tmp_path / "b", (8,), SEEDS)
    c = write_matrix(tmp_path / "c", (29,), SEEDS)
    judged(a)
    out = tmp_path / "all"
    merge([str(a), str(b)], out)
    assert verdicts(judged(out))[8].test == 2 and ledger(out)[0] == ledger(a)[0]
    two = ledger(out)
    merge([str(a), str(b), str(c)], out)
    assert ledger(out) == two
    assert verdicts(judged(out))[29].test == 3 and ledger(out)[:2] == two


def test_two_series_that_are_merged_begin_a_new_one(tmp_path: Path) -> None:
    folders = [
        write_matrix(tmp_path / "a", (0, 5), SEEDS),
        write_matrix(tmp_path / "b", (0, 8), SEEDS),
    ]
    for folder in folders:
        judged(folder)
    out = merge([str(folder) for folder in folders], None)
    series = read_series(out)
    assert series is not None and not series.tests
    assert any("a new one begins" in note for note in read_matrix(out).merged)
    assert [test["step"] for _ in [judged(out)] for test in ledger(out)] == [5, 8]


def test_family_is_asked_for_configured_or_recorded(tmp_path: Path) -> None:
    write_run(
        tmp_path, 0, 1, job={"settings": {"matrix": {"report_family": "sequential"}}}
    )
    runs = read_matrix(tmp_path).runs
    config = tmp_path / "config.py"
    assert rules_for(config, runs).family == "sequential"
    config.write_text("CONFIG_REPORT_FAMILY = 'sequential-fdr'\nORIGINS = {}\n")
    assert rules_for(config, runs).family == "sequential-fdr"
    assert rules_for(config, runs, family="together").family == "together"


# ---- one test, by hand: 3 seeds have 2 degrees of freedom, at which -----------------
# P(T > t) = 1/2 - t / (2 sqrt(2 + t^2)); the standard error is 0.001 / sqrt(3).

STANDARD_ERROR = 0.001 / math.sqrt(3)


def above(t: float) -> float:
    return 0.5 - t / (2 * math.sqrt(2 + t * t))


def one_test(*differences: float, level: float | None, is_own: bool = True) -> Verdict:
    test = None
    if level is not None:
        names = {"time": "", "step": 5, "name": "ra", "partner": "", "key": ""}
        numbers = {"mean": 0.0, "half_width": 0.002, "level": level, "p": 0.004}
        test = SeriesTest(number=2, seeds=SEEDS, **names, **numbers)
    return grade_test(
        Differences(differences), Rules(family="sequential"), test, is_own
    )


@pytest.mark.parametrize(
    ("level", "grade"), [(0.05, NEUTRAL), (0.02, NEUTRAL), (0.01, INCONCLUSIVE)]
)
def test_equivalence_is_tested_at_the_level_of_the_test(level, grade) -> None:
    """Two one-sided tests of a mean of 0 against the margin of 0.003: p is 0.0175."""
    found = one_test(0.001, 0.0, -0.001, level=level, is_own=False)
    p = above(0.003 / STANDARD_ERROR)
    assert found.p_equivalent_series == pytest.approx(p * 0.05 / level)
    assert found.p_equivalent == found.p_equivalent_series
    assert (found.grade, found.test, found.level) == (grade, 2, level)


def test_at_equal_time_the_paired_test_has_the_level_of_the_series() -> None:
    own = one_test(0.004, 0.005, 0.006, level=0.025)
    assert own.p_series == pytest.approx(0.004 * 2) and own.grade == HARMFUL
    assert own.family_interval == pytest.approx((0.003, 0.007))
    timed = one_test(0.004, 0.005, 0.006, level=0.025, is_own=False)
    t = 0.005 / STANDARD_ERROR
    assert timed.p == own.p == pytest.approx(2 * above(t))
    assert timed.p_series == pytest.approx(2 * above(t) * 2) == timed.p_deciding
    assert timed.family_interval is not None
    half = (timed.family_interval.high - timed.family_interval.low) / 2
    assert above(half / STANDARD_ERROR) == pytest.approx(0.025 / 2)


def test_without_its_test_a_comparison_has_an_interval_and_no_verdict() -> None:
    found = one_test(0.004, 0.005, 0.006, level=None)
    assert found.grade == INCONCLUSIVE and found.p_deciding is None
    assert found.interval == found.family_interval is not None
    half = found.interval.high - 0.005
    assert above(half / STANDARD_ERROR) == pytest.approx(0.05 / 2)
