"""Reports on a sweep: partners, one family, coordinates as columns."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gpt2.plan.axes import titled
from gpt2.report.compare import find_subject
from gpt2.report.grades import HARMFUL, SUPPORTED
from gpt2.report.html import html_report
from gpt2.report.lines import lines_of
from gpt2.report.markdown import markdown_report
from gpt2.report.pairing import unpaired_runs
from gpt2.report.plots import write_plots
from gpt2.report.read_results import read_matrix
from gpt2.report.summary import write_summary
from gpt2.report.sweep_tables import sweep_charts, sweep_tables
from gpt2.report.terminal import terminal_report
from gpt2.report.verdicts import Judgement, judge
from lib import stats
from tests.results_factory import STEPS, relabel, write_matrix, write_run

SEEDS = (1, 2, 3, 4)
Point = Mapping[str, Any]


def write_cell(
    root: Path, step: int, point: Point, parent: Point | None = None, **run: Any
) -> None:
    """Finished runs of a step at a point, compared with its parent at another."""
    name, title, of, *_ = STEPS[step]
    at = ",".join(f"{field}={value}" for field, value in point.items())
    theirs = ",".join(f"{field}={value}" for field, value in (parent or {}).items())
    for seed in SEEDS:
        job = {
            "name": f"{name}/{at}" if at else name,
            "title": titled(title, point),
            "run_dir": f"step{step:02d}-{name}/{at}/seed{seed}",
            "coordinates": dict(point),
        }
        if of is not None:
            whose = STEPS[of][0]
            job["parent_name"] = f"{whose}/{theirs}" if theirs else whose
        write_run(root, step, seed, job=job, twin=f"{step} {at}", **run)


@pytest.fixture
def windows(tmp_path: Path) -> Path:
    """RA at three windows, of which 16 helps and 64 harms, against one baseline."""
    write_matrix(tmp_path, (0,), SEEDS)
    for window, effect in ((16, -0.03), (8, 0.0), (64, 0.03)):
        write_cell(tmp_path, 5, {"ra_window": window}, effect=effect)
    return tmp_path


def verdicts(judged: Judgement) -> dict[str, tuple[str, str]]:
    """Partner and grade by arm."""
    return {
        c.arm.label: (c.partner.label, c.at_steps.grade) for c in judged.comparisons
    }


def test_coordinates_that_all_arms_share_are_shown_once(tmp_path: Path) -> None:
    rate = {"learning_rate": 0.002}
    write_cell(tmp_path, 0, rate)
    for window in (8, 16):
        write_cell(tmp_path, 5, {**rate, "ra_window": window}, rate)
    matrix = read_matrix(tmp_path)
    judged = judge(matrix)
    titles = [line.title.rpartition(" (")[2] for line in lines_of(judged)]
    assert titles == ["GPT-2 baseline, r=2.0", "ra_window=8)", "ra_window=16)"]
    markdown = markdown_report(matrix, judged, "x").replace("\\", "")
    assert "; all at learning_rate=0.002\n" in markdown
    assert "(learning_rate=" not in markdown
    assert "All arms: learning_rate=0.002" in map(str, terminal_report(matrix, judged))
    assert {run.row["title"] for run in matrix.runs} == {
        arm.title for arm in judged.arms
    }
    write_cell(tmp_path, 5, {"learning_rate": 0.004, "ra_window": 8})
    titles = [line.title for line in lines_of(judge(read_matrix(tmp_path)))]
    assert [title.count("learning_rate") for title in titles] == [1, 1, 1, 1]


def test_each_cell_has_its_own_verdict_in_the_order_of_its_values(
    windows: Path,
) -> None:
    judged = judge(read_matrix(windows))
    found = verdicts(judged)
    assert [arm.label for arm in judged.arms] == [
        *("0 baseline", "5 ra/ra_window=8", "5 ra/ra_window=16", "5 ra/ra_window=64")
    ]
    assert found["5 ra/ra_window=16"] == ("0 baseline", SUPPORTED)
    assert found["5 ra/ra_window=64"] == ("0 baseline", HARMFUL)
    assert [arm.coordinates for arm in judged.arms][1:] == [
        {"ra_window": window} for window in (8, 16, 64)
    ]


def test_all_comparisons_are_one_family_and_the_report_says_so(windows: Path) -> None:
    matrix = read_matrix(windows)
    judged = judge(matrix)
    alone = [c.at_steps.p for c in judged.comparisons]
    assert None not in alone
    holm = stats.holm([p for p in alone if p is not None])
    assert [c.at_steps.p_holm for c in judged.comparisons] == pytest.approx(holm)
    text = " ".join(markdown_report(matrix, judged, "x").split())
    assert "over all steps and all of its values, are one family of 3: every p" in text
    write_matrix(windows / "plain", (0, 5), SEEDS)
    plain = read_matrix(windows / "plain")
    assert "of the sweep" not in markdown_report(plain, judge(plain), "x")


def test_the_coordinates_are_columns(windows: Path) -> None:
    write_summary(read_matrix(windows, curves=False))
    rows = list(csv.DictReader((windows / "results.csv").open()))
    assert {row["ra_window"] for row in rows if row["step"] == "0"} == {""}
    assert {row["ra_window"] for row in rows if row["step"] == "5"} == {
        *"8",
        "16",
        "64",
    }
    runs = json.loads((windows / "summary.json").read_text())["runs"]
    assert {run.get("ra_window") for run in runs} == {None, 8, 16, 64}


def test_the_partner_is_the_one_at_equal_coordinates(tmp_path: Path) -> None:
    rates = [{"learning_rate": rate} for rate in (0.001, 0.002)]
    for rate in rates:
        write_cell(tmp_path, 0, rate)
        for window in (16, 64):
            write_cell(tmp_path, 5, {"ra_window": window, **rate}, rate)
    found = verdicts(judge(read_matrix(tmp_path)))
    assert {arm: partner for arm, (partner, _) in found.items()} == {
        f"5 ra/ra_window={w},learning_rate={r}": f"0 baseline/learning_rate={r}"
        for w in (16, 64)
        for r in (0.001, 0.002)
    }


def test_an_ancestor_at_equal_coordinates_stands_in(tmp_path: Path) -> None:
    for rate in (0.001, 0.002):
        write_cell(tmp_path, 0, {"learning_rate": rate})
    write_matrix(tmp_path, (0,), SEEDS)  # without a sweep, in the same folder
    point = {"ra_window": 16, "learning_rate": 0.002}
    write_cell(tmp_path, 6, point, point)
    judged = judge(read_matrix(tmp_path))
    (found,) = judged.comparisons
    assert found.partner.label == "0 baseline/learning_rate=0.002"
    assert found.note == "step 5 was not run"


def test_a_partner_with_more_axes_is_explained(tmp_path: Path) -> None:
    for window in (16, 64):
        write_cell(tmp_path, 5, {"ra_window": window})
    write_cell(tmp_path, 29, {}, {"ra_window": 64})
    (found,) = judge(read_matrix(tmp_path)).comparisons
    assert found.partner.label == "5 ra/ra_window=64"
    assert found.note == "RA_MLA_RA_WINDOW makes no difference to it"


def test_losses_are_tabulated_against_the_swept_values(tmp_path: Path) -> None:
    effects = {0.001: 0.3, 0.002: 0.0, 0.004: 0.3, 0.01: 0.6}
    for rate, effect in effects.items():
        write_cell(tmp_path, 0, {"learning_rate": rate}, effect=effect)
        point = {"ra_window": 16, "learning_rate": rate}
        write_cell(tmp_path, 5, point, {"learning_rate": rate}, effect=-100 * rate)
    matrix = read_matrix(tmp_path)
    judged = judge(matrix)
    (table,) = sweep_tables(judged)
    assert (table.axis, table.values) == ("learning_rate", [*effects])
    base, ra = table.rows
    assert (base.name, base.best, base.is_at_edge) == ("0 baseline", 0.002, False)
    assert (ra.name, ra.best, ra.is_at_edge) == ("5 ra/ra_window=16", 0.01, True)
    means = {arm.label: arm.mean("val_loss") for arm in judged.arms}
    assert base.losses[0.004] == means["0 baseline/learning_rate=0.004"]
    text = markdown_report(matrix, judged, "x")
    assert "| arm | LEARNING\\_RATE=0.001 | LEARNING\\_RATE=0.002 |" in text
    best = f"{base.losses[0.002]:.4f}\\*"
    (line,) = [row for row in text.splitlines() if best in row]
    assert line.startswith("| 0 baseline |") and "edge" not in line
    assert text.count("best at the edge") == 1
    # No best is named while a run is missing.
    write_run(
        tmp_path,
        0,
        9,
        status="planned",
        twin="more",
        job={
            "name": "baseline/learning_rate=0.002",
            "run_dir": "step00-baseline/learning_rate=0.002/seed9",
            "coordinates": {"learning_rate": 0.002},
        },
    )
    (table,) = sweep_tables(judge(read_matrix(tmp_path)))
    assert table.rows[0].best is None and not table.rows[0].is_at_edge


def test_charts_have_differences_and_losses_by_value(windows: Path) -> None:
    judged = judge(read_matrix(windows))
    (chart,) = sweep_charts(judged)
    assert chart.difference is not None and chart.loss is not None
    (ra,) = chart.difference.series
    assert (ra.label, list(ra.x)) == ("5 ra", [8, 16, 64])
    assert chart.difference.scale == "log" and chart.difference.margin == 0.003
    verdicts_of = {
        c.arm.coordinates["ra_window"]: c.at_steps for c in judged.comparisons
    }
    for x, y, low, high in zip(ra.x, ra.y, ra.low, ra.high, strict=True):
        interval = verdicts_of[x].interval
        assert interval is not None
        assert (y, low, high) == (verdicts_of[x].mean, interval.low, interval.high)
    arms = {arm.label: arm for arm in judged.arms}
    losses, base = chart.loss.series
    assert losses.y[1] == arms["5 ra/ra_window=16"].mean("val_loss")
    assert base.is_level and base.y == (arms["0 baseline"].mean("val_loss"),)


def test_report_draws_sweeps_and_removes_stale_charts(windows: Path) -> None:
    stale = windows / "plots" / "sweep-old.png"
    stale.parent.mkdir()
    stale.write_bytes(b"")
    matrix = read_matrix(windows)
    judged = judge(matrix)
    write_plots(judged, stale.parent)
    assert not stale.exists() and (stale.parent / "sweep-ra_window.png").is_file()
    assert "plots/sweep-ra_window.png" in markdown_report(matrix, judged, "x")
    page = html_report(matrix, judged, "x")
    assert '<th scope="col" class="number">16</th>' in page
    text = page.partition('id="data">')[2].partition("</script>")[0]
    (sweep,) = json.loads(text)["sweeps"]
    assert [tick for _, tick in sweep["loss"]["ticks"]] == ["8", "16", "64"]
    assert [one["is_level"] for one in sweep["loss"]["series"]] == [False, True]


def test_differences_are_drawn_only_if_there_are_any(tmp_path: Path) -> None:
    for layers in (2, 4):
        write_cell(tmp_path, 0, {"n_layer": layers})
    alone = _width_of_losses(tmp_path)
    write_cell(tmp_path, 5, {"n_layer": 4}, {"n_layer": 4}, effect=-0.03)
    assert _width_of_losses(tmp_path) > alone, "a second panel"


def _width_of_losses(root: Path) -> int:
    """Width of the chart of losses in pixels, from the header of its PNG."""
    write_plots(judge(read_matrix(root)), root / "plots")
    return int.from_bytes((root / "plots" / "loss.png").read_bytes()[16:20], "big")


def test_compare_wants_one_arm(windows: Path) -> None:
    with pytest.raises(
        ValueError, match="'5' names 3 arms of a sweep: name one: ra/ra"
    ):
        find_subject("5", windows)
    (arm,) = find_subject("ra/ra_window=16", windows).arms
    assert arm.coordinates == {"ra_window": 16}
    assert len(find_subject("0", windows).arms) == 1
    for name in ("step00-baseline", "step05-ra/ra_window=16"):  # as in make status
        (arm,) = find_subject(name, windows).arms
        assert {run.run_dir.rpartition("/")[0] for run in arm.runs} == {name}


def test_runs_of_other_context_lengths_are_not_called_unpaired(tmp_path: Path) -> None:
    prints = {"batches": {"1": "a"}, "validation": "v", "initial_weights": {}}
    for block in (512, 1024):
        mine = {**prints, "batches": {"1": f"of {block}"}}
        manifest = {"pairing": mine}
        write_cell(tmp_path, 5, {"block_size": block}, manifest=manifest)
    runs = read_matrix(tmp_path).runs
    assert unpaired_runs(runs)  # alike in everything but their batches
    for run in runs:
        settings = run.settings
        settings["model"]["block_size"] = run.coordinates["block_size"]
        relabel(tmp_path / run.run_dir, settings=settings)
    assert not unpaired_runs(read_matrix(tmp_path).runs)


def test_coordinates_from_strangers_are_data(windows: Path) -> None:
    run_dir = windows / "step05-ra/ra_window=8/seed1"
    odd = {"val_loss": 0.0, "x y": 1, "ra_window": 8, "list": [1], "name": "other"}
    relabel(run_dir, coordinates=odd)
    run = next(r for r in read_matrix(windows).runs if r.run_dir.endswith("=8/seed1"))
    assert run.coordinates == {"ra_window": 8}
    assert run.row["val_loss"] > 0 and run.row["name"] == "ra/ra_window=8"
    relabel(run_dir, coordinates="8")
    assert len(read_matrix(windows).runs) == 16
