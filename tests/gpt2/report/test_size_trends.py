"""gpt2/report/size_trends.py: differences against size, and their trends."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from gpt2.report.alarms import far_baselines
from gpt2.report.evidence import Rules
from gpt2.report.grades import INVALID, SUPPORTED
from gpt2.report.markdown import markdown_report
from gpt2.report.read_results import read_matrix
from gpt2.report.sentences import method, size_lines
from gpt2.report.size_trends import contrasts, size_trends
from gpt2.report.summary import summary_of
from gpt2.report.sweep_tables import sweep_charts, sweep_tables
from gpt2.report.verdicts import Judgement, judge
from lib import stats
from tests.results_factory import STEPS, write_run
from tests.scratch import ROOT

SIZES = {"12x768": 124_000_000, "2x128": 7_000_000, "6x384": 30_000_000}
SEEDS = (1, 2, 3, 4)


def write_sizes(
    root: Path,
    effects: dict[int, dict[str, float]],
    seeds: Sequence[int] = SEEDS,
    noise: float = 0.0015,
    failed: tuple[int, str] | None = None,
    sizes: Mapping[str, int] = SIZES,
    steps: Sequence[int] = (),
) -> Path:
    """A finished matrix of steps at sizes, with effects by step and size."""
    for step in steps or (0, *effects):
        name, title, of, *_ = STEPS[step]
        for size, parameters in sizes.items():
            for seed in seeds:
                job = {
                    "name": f"{name}/size={size}",
                    "title": f"{title} (size={size})",
                    "run_dir": f"step{step:02d}-{name}/size={size}/seed{seed}",
                    "coordinates": {"size": size},
                    **({} if of is None else {"parent_name": f"baseline/size={size}"}),
                }
                write_run(
                    root,
                    step,
                    seed,
                    job=job,
                    twin=f"{step} {size}",
                    noise=noise,
                    effect=effects.get(step, {}).get(size, 0.0),
                    status="failed" if failed == (step, size) else "done",
                    result={"parameters": parameters},
                )
    return root


def judged_at(root: Path) -> Judgement:
    return judge(read_matrix(root))


# ---- the fit ----------------------------------------------------------------------


def test_contrasts_are_those_of_least_squares() -> None:
    x = [6.2, 6.9, 7.4, 8.1]
    line, bend = contrasts(x)
    y = [0.3, -0.1, 0.25, 0.7]
    assert math.fsum(w * v for w, v in zip(line, y, strict=True)) == pytest.approx(
        np.polyfit(x, y, 1)[0]
    )
    assert bend is not None
    straight = [2 - 3 * value for value in x]
    curved = [value**2 for value in x]
    assert math.fsum(w * v for w, v in zip(bend, straight, strict=True)) == (
        pytest.approx(0, abs=1e-9)
    )
    assert math.fsum(w * v for w, v in zip(bend, curved, strict=True)) > 0.1
    assert contrasts([6.0, 7.0]) == ([-1.0, 1.0], None)


@pytest.mark.parametrize("seeds", [3, 6])
def test_arms_without_a_trend_get_one_in_one_of_twenty_studies(seeds: int) -> None:
    """With noise that depends on the size and is shared by the sizes of a seed."""
    random = np.random.default_rng(1)
    weights = np.array(contrasts([6.2, 7.1, 8.1])[0])
    worlds = 4000
    own = random.normal(size=(worlds, seeds, 3)) * [5.0, 2.0, 1.0]
    shared = random.normal(size=(worlds, seeds, 1)) * 3.0
    slopes = (own + shared + 7.0) @ weights
    found = sum((stats.t_test(list(world)) or 1.0) < 0.05 for world in slopes)
    assert 0.04 < found / worlds < 0.06


# ---- the report -------------------------------------------------------------------


@pytest.fixture
def grown(tmp_path: Path) -> Judgement:
    """RA gains more at larger sizes; MLA loses the same at all of them."""
    gains = {"2x128": 0.0, "6x384": -0.02, "12x768": -0.04}
    losses = dict.fromkeys(SIZES, 0.03)
    return judged_at(write_sizes(tmp_path, {5: gains, 8: losses}))


def test_a_gain_that_grows_with_size_is_shown_with_its_interval(
    grown: Judgement,
) -> None:
    ra, mla = size_trends(grown)
    assert [point.size for point in ra.points] == ["2x128", "6x384", "12x768"]
    assert ra.points[-1].comparison.at_steps.grade == SUPPORTED
    x = [math.log10(point.parameters) for point in ra.points]
    true = np.polyfit(x, [0.0, -0.02, -0.04], 1)[0]
    assert ra.slope is not None and true in ra.slope.interval
    assert ra.slope.p_holm < 0.05 and ra.slope.seeds == SEEDS
    assert mla.slope is not None and 0 in mla.slope.interval
    lines = size_lines(grown)
    assert "5 ra" in lines[0] and "falls, in favour of the arm." in lines[0]
    assert "8 mla" in lines[1] and "falls" not in lines[1]
    assert "Student's t on the slopes" in method(grown)


def test_it_is_in_the_report_and_in_the_summary(tmp_path: Path) -> None:
    root = write_sizes(tmp_path, {5: {"12x768": -0.03}})
    matrix = read_matrix(root)
    judged = judge(matrix)
    text = markdown_report(matrix, judged, "sizes")
    head = "| arm | 2x128 (7.0M) | 6x384 (30.0M) | 12x768 (124.0M) |"
    assert "## Difference by size" in text and head in text
    (table,) = sweep_tables(judged)
    assert table.values == ["2x128", "6x384", "12x768"]
    assert not any("*" in cell for row in table.rows for cell in table.cells(row))
    summary = summary_of(matrix, judged.to_json())
    schema = ROOT / "gpt2" / "report" / "summary.schema.json"
    jsonschema.validate(summary, json.loads(schema.read_text()))
    (trend,) = summary["verdicts"]["sizes"]
    assert trend["slope"]["sizes"] == ["2x128", "6x384", "12x768"]


def test_differences_that_bend_are_not_called_a_line(tmp_path: Path) -> None:
    effects = {"2x128": 0.0, "6x384": -0.06, "12x768": -0.001}
    judged = judged_at(write_sizes(tmp_path, {5: effects}, noise=0.001))
    assert "a line does not describe it" in size_lines(judged)[0]


def test_invalid_sizes_and_missing_seeds_give_no_trend(tmp_path: Path) -> None:
    one = judged_at(write_sizes(tmp_path / "a", {5: {}}, failed=(5, "2x128")))
    (trend,) = size_trends(one)
    assert trend.points[0].comparison.at_steps.grade == INVALID
    assert trend.slope is not None and trend.slope.sizes == ("6x384", "12x768")
    assert trend.slope.p_bend is None
    two = dict(list(SIZES.items())[:2])
    root = write_sizes(tmp_path / "c", {5: {}}, failed=(5, "2x128"), sizes=two)
    assert (
        "fewer than two sizes have a valid comparison" in size_lines(judged_at(root))[0]
    )
    few = judged_at(write_sizes(tmp_path / "b", {5: {}}, seeds=(1, 2)))
    assert "fewer than 3 seeds" in size_lines(few)[0]
    assert size_trends(few)[0].slope is None


def test_a_small_baseline_is_not_far_above_larger_models(tmp_path: Path) -> None:
    small = {0: {"2x128": 1.0}, 5: {"2x128": 1.0}}
    judged = judged_at(write_sizes(tmp_path / "a", small, steps=(0, 5)))
    assert far_baselines(judged.arms) == []
    small[5] = {}
    wrong = judged_at(write_sizes(tmp_path / "b", small, steps=(0, 5)))
    ((arm, text),) = far_baselines(wrong.arms)
    assert arm.label == "0 baseline/size=2x128" and "1.0" in text


def test_noise_is_that_of_the_size(tmp_path: Path) -> None:
    """Small models that are twenty times as noisy do not hide what large ones show."""
    for size, noise in (("2x128", 0.03), ("6x384", 0.0015), ("12x768", 0.0015)):
        effects = {5: {size: -0.008}, 8: {size: 0.0}}
        one = {size: SIZES[size]}
        write_sizes(tmp_path, effects, noise=noise, sizes=one)
    found = {
        (c.arm.step, c.arm.coordinates["size"]): c.at_steps
        for c in judged_at(tmp_path).comparisons
    }
    grades = {where: verdict.grade for where, verdict in found.items()}
    assert grades[5, "12x768"] == grades[5, "6x384"] == SUPPORTED
    assert grades[5, "2x128"] != SUPPORTED and grades[8, "12x768"] != SUPPORTED
    large, small = found[8, "12x768"].seeds_needed, found[8, "2x128"].seeds_needed
    assert large is None or large < 100
    assert small is None or small > 200


def test_differences_are_drawn_against_parameters(tmp_path: Path) -> None:
    judged = judged_at(write_sizes(tmp_path, {5: {"12x768": -0.03}}))
    (chart,) = sweep_charts(judged)
    assert chart.difference is not None and chart.loss is not None
    assert (chart.difference.xlabel, chart.difference.scale) == ("parameters", "log")
    ticks = chart.difference.ticks
    assert ticks == sorted(SIZES.values())
    named = [chart.difference.tick_text(x) for x in ticks]
    assert named == ["2x128", "6x384", "12x768"]
    assert [one.label for one in chart.loss.series] == ["0 baseline", "5 ra"]


def test_a_series_takes_the_noise_of_arms_of_the_same_size(tmp_path: Path) -> None:
    sizes = {name: SIZES[name] for name in ("2x128", "12x768")}
    root = write_sizes(tmp_path / "a", {5: {}, 8: {}}, sizes=sizes)
    small = read_matrix(write_sizes(tmp_path / "b", {5: {}, 8: {}}, sizes={"2x128": 7}))
    rules = Rules(family="sequential")
    both, alone = judge(read_matrix(root), rules), judge(small, rules)
    assert both.series is not None and alone.series is not None
    p = {test.name: test.p for test in both.series.tests}
    assert p["ra/size=2x128"] == alone.series.tests[0].p
